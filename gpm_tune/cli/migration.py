"""The command that converts what version 0.1 left."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from gpm_tune.cli.common import STUDIES, HomeOption, StorageOption, TrackingOption, command, home_at
from gpm_tune.cli.output import output
from gpm_tune.errors import UserError


@command(
    STUDIES, "gpm-tune migrate --dry-run", "gpm-tune migrate --home gpm-runs --storage /mnt/shared/gpm-tune"
)
def migrate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be converted, and change nothing.")
    ] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    storage: StorageOption = None,
) -> None:
    """Convert a home, and its storage, of version 0.1. What that wrote stays there."""
    from gpm_tune.study.running import migration

    place = home_at(home, tracking_uri, storage)
    report = migration.migrate(place, dry_run=dry_run)
    verb = "would be converted" if dry_run else "is converted"
    lines = [f"{what}: {verb}" for what in report.converted] + report.left_out
    output.result(asdict(report), lines or ([] if report.refused else [f"{place.root} is of today's format"]))
    if report.refused:
        raise UserError("\n".join(report.refused))
    if report.converted and not dry_run:
        output.advise(
            "what version 0.1 wrote is still there; once all is well, delete studies/NAME/checkpoints and",
            "studies/NAME/spool in home and storage, and the home's experiments and cache/teachers",
        )
