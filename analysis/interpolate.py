"""Figure 5: interpolations between the noises from which samples are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures
from gpm_tune.analysis.pictures import interpolation_figure, load_shown
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written
from gpm_tune.sampling.interpolation import INTERPOLATIONS
from gpm_tune.training.generation import check_method
from gpm_tune.training.machine import choose_device


def main(
    runs: common.RunsArgument,
    output: common.FigureOption = Path("interpolate"),
    method: Annotated[
        list[str] | None, typer.Option(help=f"One or several of {', '.join(INTERPOLATIONS)} (default: all).")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Pairs of end points.")] = 8,
    columns: Annotated[int, typer.Option(min=2, help="Samples from one end to the other.")] = 8,
    nfe: common.NFEOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
) -> None:
    """Figure 5: interpolations at regular intervals, a row of panels per model, a panel per method.

    Between latents of generators, and between points of the prior without one. All methods have the
    same ends, and so have all models with noise of the same shape. With a generator transitions are smooth.

        python analysis/interpolate.py edm discr_flow gan --method spherical-cauchy-linear -o figure5
    """
    output = figures.check_output(output)
    methods = method or list(INTERPOLATIONS)
    for name in methods:
        check_method(name)
    shown = load_shown(find_subjects(common.home_at(home), runs), nfe, choose_device(device))
    written(figures.write(*interpolation_figure(shown, methods, rows, columns, seed), output))


if __name__ == "__main__":
    script(main)
