"""Files that others may have put there."""

from __future__ import annotations

import stat
from pathlib import Path


def is_plain(path: Path, inside: Path) -> bool:
    """Whether a path is a file in a folder, or below it, to which no link below that folder leads.

    What a link shows may be a file of whoever reads it, and not of who made it; a pipe never ends.
    """
    if ".." in path.parts or not path.is_relative_to(inside):
        return False
    below = [path, *path.parents][: len(path.parts) - len(inside.parts)]
    try:
        return stat.S_ISREG(path.lstat().st_mode) and not any(place.is_symlink() for place in below)
    except OSError:
        return False
