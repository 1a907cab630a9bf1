"""Tensors that are computed once, by whichever of several processes comes first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpm_tune.metrics.cache import cached

# Computes for a second; writes a line when it begins to, and prints what it has got.
PROGRAM = """
import os, sys, time
from pathlib import Path
import torch
from gpm_tune.metrics.cache import cached

folder = Path(sys.argv[1])

def compute():
    with (folder / "computed").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[2]))
    return {"x": torch.tensor([7.0])}

(folder / f"ready-{os.getpid()}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
print(cached(folder / "cache" / "x.safetensors", ["x"], compute)["x"].item())
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def computed(folder: Path) -> list[str]:
    """The processes that have computed."""
    file = folder / "computed"
    return file.read_text().split() if file.exists() else []


def test_of_four_processes_that_start_together_one_computes(tmp_path: Path) -> None:
    processes = [start(tmp_path, 1.0) for _ in range(4)]
    while len(list(tmp_path.glob("ready-*"))) < 4:
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["7.0\n"] * 4
    assert len(computed(tmp_path)) == 1


def test_a_process_that_is_killed_while_it_computes_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    first = start(tmp_path, 600)
    while not computed(tmp_path):
        assert first.poll() is None
    second = start(tmp_path, 0)
    os.kill(first.pid, signal.SIGKILL)
    assert second.communicate(timeout=60)[0] == "7.0\n"
    assert computed(tmp_path) == [str(first.pid), str(second.pid)]
    first.communicate()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        cached(tmp_path / "x.safetensors", ["x"], lambda: {"x": torch.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_fails_in_one_is_tried_by_the_next(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"

    def fail() -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        cached(file, ["x"], fail)
    assert cached(file, ["x"], lambda: {"x": torch.ones(1)})["x"].item() == 1
