"""Training runs, as the tests ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpm_tune.training import Experiment
from gpm_tune.training.loop import Asker, Training, train_teacher
from gpm_tune.training.run import EvaluationRecord, Runs, TrainingRun
from gpm_tune.training.saved import SavedModel


def runs_at(folder: Path) -> Runs:
    """The training runs in a folder, which is made."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    return Runs(str(folder / "runs"), folder / "cache")


def training_of(experiment: Experiment, runs: Runs, user: str = "tests", **asker: Any) -> Training:
    """The training of an experiment, for a user."""
    return Training(experiment, runs.of(experiment), Asker(user, user, **asker))


def train(experiment: Experiment, runs: Runs, user: str = "tests", **asker: Any) -> list[EvaluationRecord]:
    """All evaluations of an experiment, which is trained for them."""
    return list(training_of(experiment, runs, user, **asker).evaluations())


def trained(experiment: Experiment, runs: Runs) -> TrainingRun:
    """The run of an experiment, trained to its end."""
    train(experiment, runs)
    return runs.of(experiment)


def teacher_of(experiment: Experiment, folder: Path) -> SavedModel | None:
    """The trained teacher of an experiment, from the runs in a folder; None where it has none."""
    return train_teacher(experiment, runs_at(folder), Asker("tests", "tests"), "cpu")
