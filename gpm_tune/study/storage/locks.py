"""Only one process at a time does the work of a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.lease import Lease
from gpm_tune.study.storage.home import Home


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


@contextmanager
def hold_study(name: str, home: Home) -> Iterator[Callable[[], object]]:
    """Hold a study for this process: in its home, and in the storage, which homes may share.

    Yields what raises LeaseLostError once another process has it. Raises UserError where one has it already.
    """
    with only_once(f"study '{name}'", home.study(name)):
        stored = home.stored(name)
        if stored is None:
            yield bool
            return
        if not locations.is_bucket(stored):
            Path(stored).mkdir(parents=True, exist_ok=True)
        lease = Lease(lease_of(stored), f"gpm-tune run of study {name}")
        with lease.held(wait=False):
            yield lease.check


def lease_of(stored: str) -> str:
    """The lease on a study, by where the storage has that."""
    return f"{stored}/lease.json"
