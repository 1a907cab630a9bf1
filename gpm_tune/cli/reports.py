"""Commands that show what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.cli.common import STUDIES, HomeOption, StudyArgument, command, home_at, writable
from gpm_tune.cli.output import output
from gpm_tune.errors import UserError


@command(STUDIES, "gpm-tune report discr_flow", "gpm-tune report discr_flow -o for_the_team.html")
def report(
    study: StudyArgument,
    file: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.html", help="Default: STUDY.html, here."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write all that a study has found on one page, which opens offline and can be sent to others."""
    file = file or Path(f"{study}.html")
    if file.suffix not in (".html", ".htm"):
        raise UserError(f"--output {file}: a report is a page, FILE.html")
    writable(file)
    from gpm_tune.analysis.report import render
    from gpm_tune.analysis.study_data import read_data

    file.write_text(render(read_data(home_at(home), study)), encoding="utf-8")
    output.result({"study": study, "file": str(file)}, [f"the report is {file}; open it in a browser"])
