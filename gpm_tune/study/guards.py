"""What guards a run: only one process at a time, and a Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        raise UserError(f"{what} is being run by another process") from None


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    if not (folder / "lock").exists():
        return False
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def interruptible(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """Within the block the first Ctrl-C calls the function, and the second one ends at once."""

    def handle(_signal: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        on_interrupt()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
