"""Driving a ledger by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples import POINTS

from gpm_tune.study.accounts.ledger import Ledger
from gpm_tune.study.accounts.records import StudyRecord, read_study
from gpm_tune.study.definition import space
from gpm_tune.training.checkpoint import FORMAT, VOUCHED

PBT: dict[str, Any] = {
    "scheduler": {"name": "pbt", "interval_steps": 4, "quantile": 0.25},
    "search": {
        "model.eta": {"float": [1.0, 20.0], "log": True},
        "model.loss": {"choice": ["ipm", "vanilla"]},
    },
    "experiment": space.put(POINTS, {"training.steps": 12}),
    "budget": {"trials": 4},
}


def take(ledger: Ledger) -> int:
    """The number of the next trial."""
    assignment = ledger.next()
    assert assignment is not None
    return assignment.number


def record(storage: str) -> StudyRecord:
    """What is known of the small study."""
    return read_study(storage, "small")


def write_checkpoint(folder: Path, step: int, best: dict[str, Any]) -> str:
    """What the ledger reads of a trial's checkpoint."""
    folder.mkdir(parents=True)
    file = {"size": 1, "crc32": 1}
    record = {
        "format": FORMAT,
        "files": dict.fromkeys(VOUCHED, file),
        "experiment": POINTS,
        "data": "",
        "step": step,
        "evaluated_step": step,
        "seconds": 1.0,
        "best": best,
    }
    (folder / "checkpoint.json").write_text(json.dumps(record))
    return str(folder)
