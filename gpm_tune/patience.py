"""The one way to wait for a storage that is busy, full or away: a word, minutes of attempts, one sentence."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gpm_tune.errors import ScarcityError, is_full, no_space

PATIENCE = 600.0  # seconds to wait
LONGEST_PAUSE = 15.0  # seconds between attempts
LOOK_EVERY = 0.2  # seconds between looks whether the wait is to end

T = TypeVar("T")
_log = logging.getLogger("gpm_tune")


def retry(
    use: Callable[[], T],
    passes: Callable[[Exception], bool],
    note: Callable[[Exception], None],
    is_over: Callable[[], bool] = bool,
) -> T:
    """Use something; while it fails for a reason that passes, again, for as long as that usually takes.

    passes: whether an error is worth the wait. note: is told of each one that is waited for. is_over: ends
    the wait. Raises what the last attempt raised.
    """
    start = time.monotonic()
    while True:
        try:
            return use()
        except Exception as error:
            waited = time.monotonic() - start
            if waited > PATIENCE or is_over() or not passes(error):
                raise
            note(error)
            end = time.monotonic() + min(LONGEST_PAUSE, 1 + waited / 2)
            while time.monotonic() < end and not is_over():
                time.sleep(LOOK_EVERY)


class Patience:
    """Waits for a database or a disk of this machine; `is_over`, which can be set, ends the wait."""

    def __init__(self, is_over: Callable[[], bool] = bool) -> None:
        self.is_over = is_over

    def use(self, call: Callable[[], T], place: Path) -> T:
        """Call it, again while what is at the place is busy, or its disk is full; that is said once.

        Raises ScarcityError where it stays so.
        """
        said: list[str] = []

        def say(error: Exception) -> None:
            if not said:
                said.append(str(scarcity(error, place)))
                _log.warning("%s; waiting up to %.0f minutes", said[0], PATIENCE / 60)

        try:
            return retry(call, lambda error: scarcity(error, place) is not None, say, self.is_over)
        except Exception as error:
            what = scarcity(error, place)
            if what is None:
                raise
            raise ScarcityError(what) from error


def scarcity(error: BaseException, place: Path) -> str | None:
    """What an error says to be busy or full, in words; None where it says something else."""
    for cause in causes(error):
        text = str(cause)
        if isinstance(cause, sqlite3.Error) and "locked" in text:
            return f"{place} is locked by another process, such as a backup or a database browser"
        if is_full(cause, place):
            return no_space(place)
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those from which it was raised."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
