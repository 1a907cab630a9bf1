"""Only one process at a time does the work of a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gpm_tune.errors import UserError


@contextmanager
def only_once(what: str, folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two processes on it would do the same work twice.

    Raises UserError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"{what} is being run by another process; see `gpm-tune status`, or end it with `gpm-tune stop`"
        ) from None


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder's lock; also for who may only read it."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it is not ours to read
        pass
    return False
