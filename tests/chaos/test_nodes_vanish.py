"""Faults on a cluster: nodes vanish or freeze, the head and the storage go away for a while or for good.

The short form takes a minute or two; GPM_TUNE_CHAOS=full removes five nodes in one study, cuts a node
off for a minute, and lets the head be lost for good.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from accounting import STUDY, check_accounts, check_values, write_chaos_study
from fleet import Fleet, fleet_of
from mlflow.tracking import MlflowClient
from processes import Driver

pytestmark = pytest.mark.slow

WORKERS = 2


@dataclass(frozen=True)
class Plan:
    """How much goes wrong, and for how many seconds."""

    trials: int
    removals: int
    head_away: float
    cut_off: float
    storage_away: float
    pause: int  # evaluations between faults
    seed: int

    def faults(self) -> list[str]:
        """What happens, in a random order."""
        faults = ["remove"] * self.removals + ["head", "cut off", "storage"]
        random.Random(self.seed).shuffle(faults)
        return faults


PLANS = {
    "short": Plan(4, removals=1, head_away=3, cut_off=8, storage_away=5, pause=2, seed=13),
    "full": Plan(16, removals=5, head_away=30, cut_off=60, storage_away=20, pause=3, seed=2),
}
FORM = os.environ.get("GPM_TUNE_CHAOS", "short")
PLAN = PLANS[FORM]


@contextmanager
def driver_of(study: Path, fleet: Fleet) -> Iterator[Driver]:
    """The study's driver on a cluster, started; trials write to a folder that all nodes share."""
    home, storage = study.parent / "home", study.parent / "storage"
    driver = Driver(study, home, "--address", fleet.address, "--storage", str(storage))
    driver.start()
    try:
        yield driver
    finally:
        driver.clear()


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Within the block a file is in the folder's place: even root can write nothing there."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.touch()
    yield
    folder.unlink()
    aside.rename(folder)


def cause(fault: str, driver: Driver, fleet: Fleet, storage: Path, chance: random.Random) -> None:
    """Let something go wrong where trials run, and be well again."""
    driver.wait_for(fleet.busy)
    node = chance.choice(fleet.busy())
    if fault == "remove":
        fleet.vanish(node)
    elif fault == "cut off":
        losses = driver.output.count("its process was lost")
        with fleet.frozen(node):
            time.sleep(PLAN.cut_off)
            driver.wait_for(lambda: driver.output.count("its process was lost") > losses)
    elif fault == "head":
        fleet.lose_head()
        time.sleep(PLAN.head_away)
        fleet.restart_head()
    else:
        with unwritable(storage):
            time.sleep(PLAN.storage_away)


@pytest.mark.timeout(900 if FORM == "short" else 1800)
def test_a_study_outlives_the_nodes_that_it_runs_on(tmp_path: Path) -> None:
    study = write_chaos_study(tmp_path, PLAN.trials)
    chance = random.Random(PLAN.seed)
    with fleet_of(0, keeps_state=True) as fleet, driver_of(study, fleet) as driver:
        driver.wait_for(lambda: "waiting for one" in driver.output)
        for _ in range(WORKERS):
            fleet.add()
        for fault in PLAN.faults():
            seen = driver.evaluations
            driver.wait_for(lambda seen=seen: driver.evaluations >= seen + PLAN.pause)  # type: ignore[misc]
            cause(fault, driver, fleet, tmp_path / "storage", chance)
        driver.finish(seconds=450 if FORM == "short" else 900)
    check_books(tmp_path, PLAN.trials)


@pytest.mark.skipif(FORM == "short", reason="takes a minute of waiting for a head: GPM_TUNE_CHAOS=full")
def test_a_lost_head_ends_the_driver_and_a_new_cluster_continues(tmp_path: Path) -> None:
    study = write_chaos_study(tmp_path, trials=3)
    with fleet_of(WORKERS, keeps_state=False) as fleet, driver_of(study, fleet) as driver:
        driver.wait_for(lambda: driver.evaluations >= 3)
        address = fleet.address
        fleet.lose_head()
        assert driver.wait(seconds=90) not in (0, 1), driver.output
        assert f"the head of the Ray cluster, {address}," in driver.output
        assert "the same command continues the study" in driver.output
    with fleet_of(WORKERS, keeps_state=False) as fleet, driver_of(study, fleet) as driver:
        driver.finish(seconds=300)
    check_books(tmp_path, trials=3)


def check_books(folder: Path, trials: int) -> None:
    """Nothing is lost, nothing is there twice, and no value depends on what happened; the storage agrees."""
    tracked = MlflowClient(f"sqlite:///{folder / 'home' / 'mlflow.db'}")
    for place in (folder / "home", folder / "storage" / "studies" / STUDY):
        check_accounts(f"sqlite:///{place / 'optuna.db'}", tracked, trials)
    check_values(f"sqlite:///{folder / 'home' / 'optuna.db'}")
