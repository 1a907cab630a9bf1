"""What ends a trial that hangs: its process, from outside of Python, so that not even a held GIL helps it."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gpm_tune
from gpm_tune.study.running import watchdog

TIME_IS_OVER = getattr(signal, "SIGRTMAX", signal.SIGUSR2)  # which nobody else sends
FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$')


class TimeLimit:
    """How long a trial may take to its next evaluation, or for a checkpoint; None for as long as it likes.

    Where it takes longer its process ends, and leaves in the file where all its threads were. The
    process that takes the trial over finds the file, and so does not hang in its turn. Time in which the
    process was frozen does not count.
    """

    _watchdog: subprocess.Popen[str] | None = None  # of this process, for one trial after another

    def __init__(self, seconds: float | None, file: Path) -> None:
        self._seconds = seconds
        self._file = file

    @property
    def decision(self) -> str | None:
        """Why the trial was ended; None where it was not."""
        if self._seconds is None or not self._file.exists() or not self._file.stat().st_size:
            return None
        where = _where(self._file.read_text(errors="replace"))
        return f"no evaluation within {self._seconds:g} s; it was at {where} (all threads: {self._file})"

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Within the block the time runs."""
        if self._seconds is None:
            yield
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("w") as file:
            # Chained to what the signal does otherwise, which is to end the process.
            faulthandler.register(TIME_IS_OVER, file=file, chain=True)
            self._tell(f"{self._seconds}\n")
            try:
                yield
            finally:
                self._tell("\n")
                faulthandler.unregister(TIME_IS_OVER)

    def pause(self) -> None:
        """Count no time of a trial that has to wait for others."""
        if self._seconds is not None:
            self._tell("\n")

    def restart(self) -> None:
        """Let the time begin anew."""
        if self._seconds is not None:
            self._tell(f"{self._seconds}\n")

    @classmethod
    def _tell(cls, line: str) -> None:
        """Tell the watchdog, which is started for the first line, or where it has been killed."""
        dog = cls._watchdog
        if dog is None or dog.poll() is not None:
            told = [str(os.getpid()), str(int(TIME_IS_OVER))]
            command = [sys.executable, "-I", "-S", watchdog.__file__, *told]
            dog = cls._watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1)
        assert dog.stdin is not None, "it is a pipe"
        dog.stdin.write(line)


def _where(dump: str) -> str:
    """Where the thread that trained was: its innermost frame, and the innermost one of this package."""
    package = str(Path(gpm_tune.__file__).parent)
    frames: list[re.Match[str]] = []
    for thread in re.split(r"\n\n", dump):
        frames = [match for line in thread.splitlines() if (match := FRAME.match(line))]
        ours = [frame for frame in frames if frame["file"].startswith(package) and frame["file"] != __file__]
        if ours:
            called = "" if ours[0] is frames[0] else f", called from {_place(ours[0])}"
            return _place(frames[0]) + called
    # Of the main thread, the last one, not all frames can always be read.
    return _place(frames[0]) if frames else "an unknown place"


def _place(frame: re.Match[str]) -> str:
    return f"{Path(frame['file']).name}:{frame['line']} in {frame['function']}"
