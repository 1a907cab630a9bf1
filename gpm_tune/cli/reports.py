"""Commands that show what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.cli.common import HomeOption, TrackingOption, app, home_at
from gpm_tune.errors import UserError


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.html", help="Default: STUDY.html, here.")
    ] = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Write all that a study has found on one page, which opens offline and can be sent to others."""
    file = output or Path(f"{study}.html")
    if not file.parent.is_dir():
        raise UserError(f"--output {file}: there is no folder {file.parent}")
    if file.suffix not in (".html", ".htm"):
        raise UserError(f"--output {file}: a report is a page, FILE.html")
    from gpm_tune.analysis.report import render
    from gpm_tune.analysis.study_data import read_data

    file.write_text(render(read_data(home_at(home, tracking_uri), study)), encoding="utf-8")
    print(f"the report is {file}; open it in a browser")
