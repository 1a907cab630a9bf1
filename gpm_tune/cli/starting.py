"""Commands that start people off: a schema for their editor, a first study, a package of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.cli.common import app

OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write it there, instead of printing it."),
]


@app.command()
def schema(
    output: OutputOption = None,
    experiment: Annotated[
        bool, typer.Option("--experiment", help="Of an experiment file, instead of a study file.")
    ] = False,
) -> None:
    """Print the JSON Schema of study files, with which an editor completes and checks them."""
    from gpm_tune.study.definition.schema import as_text, experiment_schema, study_schema

    found = experiment_schema() if experiment else study_schema()
    if output is None:
        print(as_text(found), end="")
        return
    output.write_text(as_text(found), encoding="utf-8")
    print(f"{output}: an editor with yaml-language-server uses it for files whose first line is")
    print(f"  # yaml-language-server: $schema={output.name}")
