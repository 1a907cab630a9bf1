"""The time limit: a process that hangs ends, even with the GIL held, and says where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpm_tune.study.running.time_limit import TIME_IS_OVER, TimeLimit

HANG = """
import ctypes, sys, time
from pathlib import Path
from gpm_tune.config import nearest
from gpm_tune.study.running.time_limit import TimeLimit

def hang():
    {how}

class Words:
    def __iter__(self):
        hang()

with TimeLimit(0.5, Path(sys.argv[1])).watch():
    nearest("word", Words())
"""


@pytest.mark.parametrize("how", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"])
def test_a_hang_ends_the_process_and_names_the_place(tmp_path: Path, how: str) -> None:
    file = tmp_path / "trial" / "hang.txt"
    code = HANG.format(how=how)
    ended = subprocess.run([sys.executable, "-c", code, file], timeout=50, check=False)
    assert ended.returncode == -TIME_IS_OVER
    decision = TimeLimit(0.5, file).decision
    assert decision is not None
    assert decision.startswith(
        "no evaluation within 0.5 s; it was at <string>:8 in hang, called from config.py:"
    )
    assert decision.endswith(f"in nearest (all threads: {file})")


WORK = """
import sys
from pathlib import Path
from gpm_tune.study.running.time_limit import TimeLimit

with TimeLimit(2.0, Path(sys.argv[1])).watch():
    print("working", flush=True)
    sys.stdin.readline()
"""


def test_time_in_which_the_process_is_frozen_does_not_count(tmp_path: Path) -> None:
    """Both of a trial with its watchdog, and of a trial alone."""
    files = {os.killpg: tmp_path / "all.txt", os.kill: tmp_path / "one.txt"}
    trials = {
        freeze: subprocess.Popen(
            [sys.executable, "-c", WORK, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for freeze, file in files.items()
    }
    for freeze, trial in trials.items():
        assert trial.stdout is not None
        assert trial.stdout.readline() == "working\n"
        freeze(trial.pid, signal.SIGSTOP)
    time.sleep(3)
    for freeze, trial in trials.items():
        freeze(trial.pid, signal.SIGCONT)
        trial.communicate("done\n", timeout=50)
        assert trial.returncode == 0
        assert TimeLimit(2.0, files[freeze]).decision is None


def test_the_watchdog_is_told_of_one_interval_after_another_and_replaced(tmp_path: Path) -> None:
    limit = TimeLimit(60.0, tmp_path / "hang.txt")
    for _ in range(100):
        with limit.watch():
            pass
    dog = TimeLimit._watchdog
    assert dog is not None
    dog.kill()
    dog.wait()
    with limit.watch():
        assert TimeLimit._watchdog is not dog


def test_without_a_limit_nothing_is_written(tmp_path: Path) -> None:
    limit = TimeLimit(None, tmp_path / "hang.txt")
    with limit.watch():
        pass
    assert not list(tmp_path.iterdir())
