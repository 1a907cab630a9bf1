"""Draws what a study has learnt and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis.charts import draw
from gpm_tune.analysis.figures import check_output, write
from gpm_tune.analysis.study_data import read_data
from gpm_tune.analysis.study_figures import study_charts
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written


def main(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Where to write: OUTPUT_best.csv, .png and .svg, and so on."),
    ] = Path("study"),
    home: common.HomeOption = None,
) -> None:
    """Draw what a study has learnt and what it cost: a table and a picture of each figure.

    OUTPUT_best (best so far against trials and training time), _curves (learning curves), _pareto (several
    objectives), _nfe (quality against NFE), _importance, _slices, _parallel, _budget, _confirmation.
    `gpm-tune report STUDY` shows the same on one page.

    Example: python analysis/study.py quickstart -o figures/quickstart
    """
    base = check_output(output)
    data = read_data(common.home_at(home), study)
    files, lines = [], [f"note: {note}" for note in data.notes]
    for chart in study_charts(data):
        if chart.note:
            lines.append(f"{chart.key}: {chart.note}")
        if chart.panels:
            files += write(draw(chart), chart.frame, base.with_name(f"{base.name}_{chart.key}"))
    written(files, *lines)


if __name__ == "__main__":
    script(main)
