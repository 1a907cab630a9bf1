"""The time limit: a process that hangs ends, even with the GIL held, and says where it was."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpm_tune.study.running.time_limit import TimeLimit

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
    assert subprocess.run([sys.executable, "-c", code, file], timeout=50, check=False).returncode == 1
    verdict = TimeLimit(0.5, file).verdict
    assert verdict is not None
    assert verdict.startswith(
        "no evaluation within 0.5 s; it was at <string>:8 in hang, called from config.py:"
    )
    assert verdict.endswith(f"in nearest (all threads: {file})")


def test_what_is_quick_enough_is_left_alone(tmp_path: Path) -> None:
    limit = TimeLimit(60.0, tmp_path / "hang.txt")
    with limit.watch():
        assert limit.verdict is None
    assert limit.verdict is None


def test_without_a_limit_nothing_is_written(tmp_path: Path) -> None:
    limit = TimeLimit(None, tmp_path / "hang.txt")
    with limit.watch():
        pass
    assert not list(tmp_path.iterdir())
