"""Driving a trial manager by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from examples import POINTS

from gpm_tune.study.accounts.records import StudyRecord, read_study
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.training import checkpoint
from gpm_tune.training.run import TrainingRun

PBT: dict[str, Any] = {
    "scheduler": {"name": "pbt", "interval_steps": 4, "quantile": 0.25},
    "search": {
        "model.eta": {"float": [1.0, 20.0], "log": True},
        "model.loss": {"choice": ["ipm", "vanilla"]},
    },
    "experiment": space.put(POINTS, {"training.steps": 12}),
    "budget": {"trials": 4},
}


def take(manager: TrialManager) -> int:
    """The number of the next trial."""
    spec = manager.next()
    assert spec is not None
    return spec.number


def record(storage: str) -> StudyRecord:
    """What is known of the small study."""
    return read_study(storage, "small")


def keep_checkpoint(run: TrainingRun, step: int) -> None:
    """What a training run has at a step, for forks to start from."""
    record = {
        "experiment": POINTS,
        "data": "",
        "step": step,
        "evaluated_step": step,
        "seconds": 1.0,
        "is_end": False,
        "judge": "",
        "best": None,
    }
    checkpoint.write(Path(run.checkpoint(step)), {"last": {"weight": torch.zeros(1)}}, {}, record)
