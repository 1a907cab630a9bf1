"""Run as a process of its own: counts the time in which its parent works, and signals it when that is over.

Lines on its stdin are the seconds that the parent has from now on; an empty one ends the counting, and so
does the end of the parent. It counts in small steps. Where all processes are frozen (`docker pause`, a
suspended machine or job) a step is longer than it should be, and counts as a short one; one in which only
the parent is stopped does not count.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time

STEPS = 20  # at least, in which the time is counted
LONGEST_STEP = 0.5  # seconds
LAG = 2.0  # seconds that a step may take longer on a busy machine


def watch(parent: int, number: int) -> None:
    """Count until stdin ends; once the time is over the signal with that number goes to the parent."""
    for deaf_to in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(deaf_to, signal.SIG_IGN)
    left, step = math.inf, LONGEST_STEP
    text = b""
    while True:
        started = time.monotonic()
        is_told = bool(select.select([0], [], [], None if left == math.inf else step)[0])
        passed = time.monotonic() - started
        if not _is_stopped(parent):
            left -= passed if passed < step + LAG else step
        if is_told:
            told = os.read(0, 4096)
            if not told:
                return
            *lines, text = (text + told).split(b"\n")
            for line in lines[-1:]:
                left = float(line or math.inf)
                step = min(LONGEST_STEP, left / STEPS)
        if left <= 0:
            os.kill(parent, number)
            left = math.inf


def _is_stopped(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 (it is quick)
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:  # another system's, or it has ended
        return False


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]))
