"""Figure 7b: quality against NFE."""

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
    output: common.FigureOption = Path("nfe_fid"),
    nfe: Annotated[
        list[int] | None,
        typer.Option("--nfe", min=1, help="NFE to be measured (default: 1, 2, 4, … up to the models' own)."),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", help="Solvers, where a model takes them (`--solver euler ipndm:order=2`)."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="fid, kid, … (default: the data's first).")] = None,
    split: common.SplitOption = "test",
    samples: common.SamplesOption = None,
    resamples: common.ResamplesOption = RESAMPLES,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
) -> None:
    """Figure 7b: FID against NFE for any set of runs, and the Pareto front over all.

    Discriminator Flows stop early on their grid, EDM takes a coarser grid for each NFE and solver,
    generators have NFE 1. Runs that differ in nothing but their seed are one line, mean and standard
    deviation; error bars of a single seed are standard errors over samples.

        python analysis/nfe_fid.py edm discr_flow/0 discr_flow/1 gan --solver euler heun -o figure7b
    """
    output = figures.check_output(output)
    place = common.home_at(home)
    subjects = find_subjects(place, runs, replicates=True)
    refuse_different(subjects, samples)
    conditions = Conditions(split, samples, seed, resamples, (metric,) if metric else ())
    frame = measure(
        subjects,
        place,
        conditions,
        choose_device(device),
        nfe=nfe or nfe_curves.default_nfe(subjects),
        solvers=solver or (),
    )
    points = nfe_curves.with_front(points_of(frame, subjects, metric), subjects)
    written(figures.write(nfe_curves.draw(points), points, output))


if __name__ == "__main__":
    script(main)
