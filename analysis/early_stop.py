"""Figure 7a: quality after each step of the generation process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures, nfe_curves
from gpm_tune.analysis.quality import RESAMPLES, check_metric, measure, over_seeds, refuse_different
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.cli import script
from gpm_tune.cli.common import (
    DeviceOption,
    FigureOption,
    HomeOption,
    ResamplesOption,
    RunsArgument,
    SamplesOption,
    SeedOption,
    SplitOption,
    home_at,
)
from gpm_tune.cli.output import written
from gpm_tune.training.machine import choose_device
from gpm_tune.training.sweep import Conditions


def main(
    runs: RunsArgument,
    output: FigureOption = Path("early_stop"),
    every: Annotated[int, typer.Option(min=1, help="Measure after every so many evaluations.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps of EDM's grid (default: the experiment's).")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="fid, kid, … (default: the data's first).")] = None,
    split: SplitOption = "test",
    samples: SamplesOption = None,
    resamples: ResamplesOption = RESAMPLES,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    home: HomeOption = None,
) -> None:
    """Figure 7a: FID of what the generation process has made after each of its N steps.

    Every model is simulated once along its grid, and measured on the way: a Discriminator Flow's images
    are well-formed early, EDM's are noisy up to the end. Generators have no such process.

        python analysis/early_stop.py edm discr_flow --every 2 -o figure7a
    """
    output = figures.check_output(output)
    place = home_at(home)
    subjects = nfe_curves.with_a_process(find_subjects(place, runs, replicates=True))
    refuse_different(subjects, samples)
    frame = measure(
        subjects,
        place,
        Conditions(split, samples, seed, resamples),
        choose_device(device),
        nfe=nfe_curves.stops(subjects, every, steps),
        one_grid=True,
        steps=steps,
    )
    chosen = check_metric(metric, frame, subjects[0].experiment.default_objective.metric)
    points = nfe_curves.with_front(over_seeds(frame, chosen))
    written(figures.write(nfe_curves.draw(points, front=False), points, output))


if __name__ == "__main__":
    script(main)
