"""Draws what quality costs: a metric against the time, GPU-hours and energy of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis.charts import draw
from gpm_tune.analysis.compute import choose_targets, compute_chart, costs_of, progress, say
from gpm_tune.analysis.figures import check_output, write
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written


def main(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names of studies.")],
    target: Annotated[
        list[float] | None,
        typer.Option("--target", help="A value to be reached (default: a few along the curve)."),
    ] = None,
    metric: Annotated[str, typer.Option(help="A metric of the evaluations, at the full NFE.")] = "fid",
    output: common.FigureOption = Path("compute"),
    home: common.HomeOption = None,
) -> None:
    """Draw the best FID so far against the time, GPU-hours and energy of training; a line per model.

    The strong line is of each model's best trial, the faint ones are of the others. OUTPUT_targets.csv
    tells what each trial had cost when it reached each target.

    Example: python analysis/compute.py edm gan discr_flow --target 50 20 10 -o figures/compute
    """
    base = check_output(output)
    frame = progress(common.home_at(home), studies, metric)
    files = write(draw(compute_chart(frame)), frame, base)
    costs = costs_of(frame, target or choose_targets(frame))
    table = base.with_name(f"{base.name}_targets.csv")
    costs.to_csv(table, index=False)
    written([*files, table], *say(costs))


if __name__ == "__main__":
    script(main)
