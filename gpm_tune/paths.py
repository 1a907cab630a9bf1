"""Paths as people write them: with ~, and relative to where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from gpm_tune.errors import UserError


def expand(path: str | Path) -> Path:
    """The path with ~ as the home folder that it means. Raises UserError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = Path(path).parts[0]
        raise UserError(
            f"{path}: this machine has no user {name[1:]}\nhelp: a folder of that name is ./{name}"
        ) from None


def _absolute(path: Path) -> Path:
    try:
        expand(path)
    except UserError as error:
        raise ValueError(str(error)) from None
    return path if str(path).startswith("~") else path.absolute()


# Absolute, because trials have other working folders; ~ stays: on every node it is the home that is there.
LocalPath = Annotated[Path, AfterValidator(_absolute)]
