"""Figure 7a: quality after each step of the generation process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures, nfe_curves
from gpm_tune.analysis.quality import RESAMPLES, measure, points_of, refuse_different
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written
from gpm_tune.training.machine import choose_device
from gpm_tune.training.sweep import Conditions


def main(
    runs: common.RunsArgument,
    output: common.FigureOption = Path("early_stop"),
    every: Annotated[int, typer.Option(min=1, help="Measure after every so many evaluations.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps of EDM's grid (default: the experiment's).")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="fid, kid, … (default: the data's first).")] = None,
    split: common.SplitOption = "test",
    samples: common.SamplesOption = None,
    resamples: common.ResamplesOption = RESAMPLES,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
) -> None:
    """Figure 7a: FID of what the generation process has made after each of its N steps.

    Every model is simulated once along its grid, and measured on the way: a Discriminator Flow's images
    are well-formed early, EDM's are noisy up to the end. Generators have no such process.

        python analysis/early_stop.py edm discr_flow --every 2 -o figure7a
    """
    output = figures.check_output(output)
    place = common.home_at(home)
    subjects = nfe_curves.with_a_process(find_subjects(place, runs, replicates=True))
    refuse_different(subjects, samples)
    frame = measure(
        subjects,
        place,
        Conditions(split, samples, seed, resamples, (metric,) if metric else ()),
        choose_device(device),
        nfe=nfe_curves.stops(subjects, every, steps),
        one_grid=True,
        steps=steps,
    )
    points = nfe_curves.with_front(points_of(frame, subjects, metric), subjects)
    written(figures.write(nfe_curves.draw(points, front=False), points, output))


if __name__ == "__main__":
    script(main)
