"""Chaos: trials, drivers and the tracking server are killed, and in the end nothing is lost or there twice.

The short form takes a minute or two; GPM_TUNE_CHAOS=full kills 20 trials and 5 drivers, and keeps the
tracking server away for a minute.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from accounting import check_accounts, check_values, write_chaos_study
from mlflow.tracking import MlflowClient
from processes import Driver, Server

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Plan:
    """How much goes wrong."""

    trials: int
    trial_kills: int
    driver_kills: int
    outage: float  # seconds
    pause: int  # evaluations between faults
    seed: int

    def faults(self) -> list[str]:
        """What happens, in a random order; the server goes while there is something to deliver."""
        faults = ["trial"] * self.trial_kills + ["driver"] * self.driver_kills + ["server"]
        random.Random(self.seed).shuffle(faults)
        return faults


PLANS = {
    "short": Plan(trials=4, trial_kills=2, driver_kills=1, outage=5, pause=3, seed=1),
    "full": Plan(trials=60, trial_kills=20, driver_kills=5, outage=60, pause=4, seed=2),
}
PLAN = PLANS[os.environ.get("GPM_TUNE_CHAOS", "short")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def driver(tmp_path: Path, server: Server) -> Iterator[Driver]:
    path = write_chaos_study(tmp_path, PLAN.trials)
    driver = Driver(path, tmp_path / "home", "--tracking-uri", server.uri)
    yield driver
    driver.clear()


def play(driver: Driver, server: Server) -> None:
    """Run the study while everything goes wrong, and to its end."""
    chance = random.Random(PLAN.seed)
    server.wait()
    driver.start()
    for fault in PLAN.faults():
        seen = driver.evaluations
        driver.wait_for(lambda seen=seen: driver.evaluations >= seen + PLAN.pause)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.5))  # at any moment between evaluations
        if fault == "trial":
            driver.kill_a_trial(chance)
        elif fault == "driver":
            driver.kill()
            driver.start()
        else:
            server.kill()
            time.sleep(PLAN.outage)
            server.start()
    server.wait()
    driver.finish(seconds=300 if PLAN.outage < 60 else 1800)
    for _ in range(5):  # the same command delivers what the server was too slow to take
        if "not up to date in" not in "".join(driver.lines[-20:]):
            return
        driver.lines.clear()
        driver.start()
        driver.finish(seconds=300)


@pytest.mark.timeout(600 if PLAN.outage < 60 else 3600)
def test_nothing_is_lost_and_nothing_is_there_twice(driver: Driver, server: Server, tmp_path: Path) -> None:
    play(driver, server)
    storage = f"sqlite:///{tmp_path / 'home' / 'optuna.db'}"
    check_accounts(storage, MlflowClient(server.uri), PLAN.trials)
    check_values(storage)
