"""Commands on what studies run on: this machine, or a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpm_tune.cli.common import (
    NO_RESULT,
    AddressOption,
    HomeOption,
    JsonOption,
    StorageOption,
    TrackingOption,
    app,
    home_at,
    new_console,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from gpm_tune.study.doctor import Finding


@app.command()
def doctor(
    file: Annotated[
        Path | None, typer.Argument(metavar="STUDY.yaml", help="A study: are its data here, does it fit?")
    ] = None,
    address: AddressOption = "local",
    storage: StorageOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Check this machine, or every node of a cluster, and say what to do; exit code 1 if anything fails."""
    from gpm_tune.study.doctor import examine

    console = new_console()
    findings = []
    for finding in examine(file, home_at(home, tracking_uri, storage), address):
        findings.append(finding)
        if not as_json:
            _show(finding, console)
    if as_json:
        print_json([finding.plain() for finding in findings])
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(NO_RESULT)


def _show(finding: Finding, console: Console) -> None:
    """One finding, its lines below each other."""
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[finding.level]
    line = Table.grid(padding=(0, 2))
    for width in (4, 9, None):
        line.add_column(width=width, overflow="fold")
    line.add_row(Text(finding.level, style), finding.check, Text(finding.found))
    if finding.advice:
        line.add_row("", "", Text(finding.advice, "italic"))
    console.print(line)
