"""Two processes that ask for the same training at once: one trains, the other waits, and takes over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from examples import experiment_of
from training_runs import content, runs_at, trained

from gpm_tune.training.run import TrainingRun

EXPERIMENT = experiment_of(training__optimizer__lr=0.01, evaluation__samples=50)
TRAIN = """
import sys
from pathlib import Path
from gpm_tune import lease
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.loop import Asker, Training
from gpm_tune.training.run import Runs

lease.LOOK_SECONDS = 0.05
experiment, who = Experiment.model_validate_json(sys.argv[1]), sys.argv[4]
runs = Runs(sys.argv[2], Path(sys.argv[3]))
make, made = Trainer.train_step, []

def count(trainer):
    make(trainer)
    made.append(trainer.step)

def say(*words):
    print(*words, flush=True)

Trainer.train_step = count
asker = Asker(who, who, on_wait=lambda holder: say("waits for", holder))
for record in Training(experiment, runs.of(experiment), asker).evaluations():
    say("step", record.step)
    if record.step == 4 and who == "first":
        sys.stdin.readline()
say("trained", *made)
"""


class Process:
    """A process that trains; the first one halts after the evaluation at step 4."""

    def __init__(self, folder: Path, who: str) -> None:
        runs = runs_at(folder)
        words = [EXPERIMENT.model_dump_json(), runs.location, str(runs.cache), who]
        command = [sys.executable, "-c", TRAIN, *words]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def rest(self, told: str = "") -> list[str]:
        output, errors = self.process.communicate(told)
        assert self.process.returncode == 0, errors
        return output.splitlines()


@contextmanager
def two(folder: Path) -> Iterator[tuple[Process, Process]]:
    """The first at step 4, and one that waits for it."""
    processes = [Process(folder, "first")]
    try:
        assert processes[0].line() == "step 4"
        processes.append(Process(folder, "second"))
        first, second = processes
        assert second.line() == "step 4", "what is on record is told at once"
        assert second.line().startswith(f"waits for first (process {first.process.pid} on ")
        yield first, second
    finally:
        for process in processes:
            process.process.kill()
            process.process.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return trained(EXPERIMENT, runs_at(tmp_path_factory.mktemp("alone")))


def assert_as_alone(folder: Path, alone: TrainingRun) -> None:
    files, expected = (
        {name: found for name, found in content(run).items() if not name.startswith("users/")}
        for run in (runs_at(folder).of(EXPERIMENT), alone)
    )
    assert files == expected


def test_one_trains_and_the_other_reads(tmp_path: Path, alone: TrainingRun) -> None:
    with two(tmp_path) as (first, second):
        assert first.rest("go on\n") == ["step 8", "step 12", trained_line(1, 12)]
        assert second.rest() == ["step 8", "step 12", "trained"]
    assert_as_alone(tmp_path, alone)


def test_where_one_is_killed_the_other_goes_on(tmp_path: Path, alone: TrainingRun) -> None:
    with two(tmp_path) as (first, second):
        first.process.kill()
        first.process.wait()
        assert second.rest() == ["step 8", "step 12", trained_line(5, 12)]
    assert_as_alone(tmp_path, alone)


def trained_line(first: int, last: int) -> str:
    return " ".join(map(str, ("trained", *range(first, last + 1))))
