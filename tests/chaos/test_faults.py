"""One fault at a time: each trial ends, or goes on, alone, and says why."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples import POINTS
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from processes import Driver
from program import gpm_tune, write_study

from gpm_tune.documents import Document
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import load_study
from gpm_tune.study.storage.home import Home
from gpm_tune.training.checkpoint import is_whole

pytestmark = pytest.mark.slow

LONG = space.put(POINTS, {"training.steps": 4000, "evaluation.every": 500, "evaluation.nfe": []})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    drivers: list[Driver] = []
    yield drivers
    for driver in drivers:
        driver.clear()


def runs(name: str, home: Path) -> dict[str, Run]:
    """The MLflow run of each trial."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags["gpm.trial"]: run for run in found if "gpm.trial" in run.data.tags}


def truncate(home: Path, driver: Driver, after: int) -> Path:
    """Freeze the trial some time after a step, and cut its latest checkpoint short; the one before."""
    driver.wait_for(lambda: f"step {after}/4000" in driver.output)
    driver.wait_for(driver.trials)
    (process,) = driver.trials()
    older = None
    while older is None:
        process.suspend()
        time.sleep(1)  # what it had sent arrives
        (trial,) = read_study(f"sqlite:///{home / 'optuna.db'}", "torn").trials
        assert trial.run is not None
        latest, *others = map(Path, Home(home).runs.named(trial.run).checkpoints())
        older = next(filter(is_whole, others), None)
        if older is None:
            process.resume()
    weights = latest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    return older


def evaluated(home: Path) -> list[int]:
    """The steps at which the first trial has been evaluated, in Optuna."""
    with sqlite3.connect(home / "optuna.db") as storage:
        return [
            step for (step,) in storage.execute("SELECT step FROM trial_intermediate_values ORDER BY step")
        ]


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, home: Path, drivers: list[Driver]
) -> None:
    """First where a trial's process was lost, then where its driver was."""
    resources = {"cpu": 1, "concurrent": 1}
    path = write_study(tmp_path, name="torn", experiment=LONG, budget={"trials": 1}, resources=resources)
    driver = Driver(path, home)
    drivers.append(driver)
    driver.start()
    before = truncate(home, driver, 1000)
    driver.kill_a_trial(random.Random(0))
    driver.wait_for(lambda: "damaged" in driver.output)
    assert f"in {before}" in driver.output
    before = truncate(home, driver, 2500)
    driver.kill()
    assert runs("torn", home)["0"].data.tags["gpm.note"].count("damaged") == 1
    driver.start()
    driver.finish(120)
    run = runs("torn", home)["0"]
    assert f"in {before}" in run.data.tags["gpm.note"]
    assert driver.output.count("damaged") == 2
    assert run.data.tags["gpm.state"] == "complete"
    assert evaluated(home) == list(range(500, 4001, 500))
    history = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_metric_history(run.info.run_id, "frechet")
    assert [point.step for point in history] == list(range(500, 4001, 500))
    kept = list(home.glob("runs/*/checkpoints/*/checkpoint.json"))
    assert len(kept) == 2


SEARCH: dict[str, Any] = {
    "data.samples": {"choice": [2000, 10**13]},
    "training.steps": {"choice": [12, 100_000_000]},
    "evaluation.every": {"choice": [4, 100_000_000]},
    "training.optimizer.lr": {"choice": [2e-4, 1e30]},
    "training.batch_size": {"choice": [16, 5000]},
}
FAULTS: list[dict[str, Any]] = [
    {"data.samples": 10**13},
    {"training.steps": 100_000_000, "evaluation.every": 100_000_000},
    {"training.optimizer.lr": 1e30},
    {"training.batch_size": 5000},
    {},
]


def test_a_trial_that_cannot_go_on_ends_alone_with_its_reason(
    tmp_path: Path, home: Path, drivers: list[Driver]
) -> None:
    """Memory, a hang, numbers that are not finite, bad values; and one that is well, in the same process."""
    resources = {"cpu": 1, "concurrent": 1, "time_limit": 10}
    path = write_study(
        tmp_path, name="ill", experiment=POINTS, search=SEARCH, budget={"trials": 6}, resources=resources
    )
    home.mkdir()
    manager = TrialManager(load_study(Document.load(path)), f"sqlite:///{home / 'optuna.db'}")
    for fault in FAULTS:
        manager._optuna.enqueue_trial({name: d["choice"][0] for name, d in SEARCH.items()} | fault)
    driver = Driver(path, home)
    drivers.append(driver)
    driver.start()
    driver.finish(200)
    trials = json.loads(gpm_tune("status", "ill", "--json", home=home).stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["complete", *["fail"] * 4, "complete"]
    reasons = [trial["reason"] or "" for trial in trials]
    assert reasons[1].startswith("out of memory: ")
    assert "Lower training.batch_size (16) or evaluation.batch_size (500)" in reasons[1]
    assert reasons[2].startswith("no evaluation within 10 s; it was at ")
    assert re.search(r"it was at \w+\.py:\d+ in (\w+|<\w+>)", reasons[2])
    assert "not finite" in reasons[3]
    assert "training.batch_size is 5000" in reasons[4]
    found = runs("ill", home)
    assert [found[str(number)].data.tags.get("gpm.reason", "") for number in range(6)] == reasons
    shown = gpm_tune("status", "ill", home=home).stdout
    assert all(f"trial {number} failed: {reasons[number][:40]}" in shown for number in range(1, 5))
