"""Training runs, as the tests ask for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gpm_tune.training import Experiment, Objective, Trainer
from gpm_tune.training.loop import Asker, Training, train_teacher
from gpm_tune.training.run import EvaluationRecord, Runs, TrainingRun
from gpm_tune.training.saved import SavedModel


def runs_at(folder: Path) -> Runs:
    """The training runs in a folder, which is made."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    return Runs(str(folder / "runs"), folder / "cache")


def training_of(
    experiment: Experiment, runs: Runs, objective: Objective | None = None, **asker: Any
) -> Training:
    """The training of an experiment."""
    asker = {"user": "tests", "name": "tests", **asker}
    return Training(experiment, runs.of(experiment), Asker(**asker), objective=objective)


def train(experiment: Experiment, runs: Runs, **asker: Any) -> list[EvaluationRecord]:
    """All evaluations of an experiment, which is trained for them."""
    return list(training_of(experiment, runs, **asker).evaluations())


def trained(experiment: Experiment, runs: Runs) -> TrainingRun:
    """The run of an experiment, trained to its end."""
    train(experiment, runs)
    return runs.of(experiment)


def teacher_of(experiment: Experiment, folder: Path) -> SavedModel | None:
    """The trained teacher of an experiment, from the runs in a folder; None where it has none."""
    return train_teacher(experiment, runs_at(folder), Asker("tests", "tests"), "cpu")


TIMES = ("seconds", "steps_per_second", "system/")


def values(metrics: dict[str, float]) -> dict[str, float]:
    """All that was measured but what it took of the machine."""
    return {name: value for name, value in metrics.items() if not name.startswith(TIMES)}


def scores(records: Iterable[EvaluationRecord]) -> dict[int, dict[str, float]]:
    """What was measured, by step."""
    return {record.step: values(record.as_text()) for record in records}


def content(run: TrainingRun) -> dict[str, Any]:
    """All files of a run's folder, by name, but for times, seconds, and the machine."""
    root = Path(run.location)
    return {str(file.relative_to(root)): _content(file) for file in root.rglob("*") if file.is_file()}


def _content(file: Path) -> Any:
    if file.suffix != ".json":
        return file.read_bytes()
    plain = json.loads(file.read_text())
    for key in ("time", "machine", "user", "seconds", "joules"):
        plain.pop(key, None)
    for part in (plain, plain.get("best")):
        if part and "scalars" in part:
            part["scalars"] = values(part["scalars"])
    return plain


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """The training steps made within the block, as they come."""
    steps: list[int] = []
    make = Trainer.train_step

    def counted(trainer: Trainer) -> None:
        make(trainer)
        steps.append(trainer.step)

    with patch.object(Trainer, "train_step", counted):
        yield steps
