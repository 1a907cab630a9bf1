"""Machines that end themselves: the watch run for real, on minutes of a twentieth of a second."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from importlib.resources import files
from pathlib import Path

import pytest
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER

from gpm_tune.study.cluster.machines import watch

SCRIPT = str(files(watch.__package__).joinpath("watch.sh"))
MINUTE = 0.05

pytestmark = pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with commands of its own, `shutdown` among them, which notes that it was called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SECONDS_OF_A_MINUTE", str(MINUTE))
    add(commands, "shutdown", f'echo "$@" >{tmp_path}/shut_down')
    return commands


def add(commands, name, script):
    (commands / name).write_text(f"#!/bin/sh\n{script}\n")
    (commands / name).chmod(0o755)


def shut_down(machine):
    return (machine.parent / "shut_down").exists()


def start(machine, name):
    """A process of this name."""
    shutil.copy(shutil.which("sleep"), machine / name)
    return subprocess.Popen([machine / name, "60"])


def test_a_machine_is_shut_down_when_the_process_has_been_away_for_the_time(machine):
    name = f"ray{os.getpid()}"
    process = start(machine, name)
    running = subprocess.Popen(["sh", SCRIPT, "4", "-x", name])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(20 * MINUTE)
        assert not shut_down(machine)
        process.kill()
        process.wait()
        ended = time.monotonic()
        running.wait(60)
        assert time.monotonic() - ended >= 3 * MINUTE
        assert (machine.parent / "shut_down").read_text() == "-h now\n"
    finally:
        process.kill()
        running.kill()


def test_a_process_that_comes_back_in_time_keeps_the_machine(machine):
    name = f"ray{os.getpid()}"
    first = start(machine, name)
    running = subprocess.Popen(["sh", SCRIPT, "40", "-x", name])
    try:
        first.kill()
        first.wait()
        time.sleep(10 * MINUTE)
        second = start(machine, name)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(60 * MINUTE)
        assert not shut_down(machine)
        second.kill()
    finally:
        first.kill()
        running.kill()


def booted(machine, kind, provider):
    """The words that the boot script hands to systemd-run."""
    add(machine, "systemd-run", f'printf "%s\\0" "$@" >{machine.parent}/asked')
    subprocess.run(["sh", "-c", watch.boot_script(kind, provider)], check=True)
    return (machine.parent / "asked").read_text().split("\0")[:-1]


def test_a_worker_watches_ray(machine):
    unit, *command = booted(machine, NODE_KIND_WORKER, {"minutes_without_ray": 30})
    assert unit == "--unit=gpm-tune-watch"
    assert command == ["sh", "-c", Path(SCRIPT).read_text(), "watch", "30", "-x", "raylet"]


def test_a_head_watches_its_studies_and_not_itself(machine):
    _, *command = booted(machine, NODE_KIND_HEAD, {"minutes_without_ray": 30, "hours_without_study": 1.5})
    *_, minutes, how, pattern = command
    assert (minutes, how) == ("90", "-f")
    assert re.search(pattern, "/usr/bin/python3 /home/ray/bin/gpm-tune run study.yaml --address auto")
    assert re.search(pattern, "gpm-tune resume study")
    assert not re.search(pattern, "gpm-tune status study")
    assert not re.search(pattern, " ".join(command))


def test_without_the_keys_nothing_ends_itself():
    assert watch.boot_script(NODE_KIND_WORKER, {"hours_without_study": 1}) is None
    assert watch.boot_script(NODE_KIND_HEAD, {"minutes_without_ray": 30}) is None
