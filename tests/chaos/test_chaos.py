"""Chaos: trials, drivers and the tracking server are killed, and in the end nothing is lost or there twice.

The short form takes a minute or two; GPM_TUNE_CHAOS=full kills 20 trials and 5 drivers, and keeps the
tracking server away for a minute.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from examples import POINTS
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from processes import Driver, Server
from program import write_study

from gpm_tune.study import space
from gpm_tune.study.records import read_study
from gpm_tune.training import Experiment, Trainer

pytestmark = pytest.mark.slow

STEPS, EVERY = 2400, 400
EXPERIMENT = space.put(POINTS, {"training.steps": STEPS, "evaluation.every": EVERY, "evaluation.nfe": []})
EVALUATIONS = list(range(EVERY, STEPS + 1, EVERY))
METRIC = "sliced_wasserstein"


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
    "short": Plan(trials=5, trial_kills=3, driver_kills=1, outage=5, pause=3, seed=1),
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
    path = write_study(
        tmp_path,
        name="chaos",
        experiment=EXPERIMENT,
        sampler={"name": "random", "seed": 0},
        budget={"trials": PLAN.trials},
    )
    driver = Driver(path, tmp_path / "home", server.uri)
    yield driver
    driver.clear()


def play(driver: Driver, server: Server) -> None:
    """Run the study while everything goes wrong, and to its end."""
    chance = random.Random(PLAN.seed)
    driver.start()
    server.wait()
    for fault in PLAN.faults():
        seen = driver.evaluations
        driver.wait_for(lambda seen=seen: driver.evaluations >= seen + PLAN.pause)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1))
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


@pytest.mark.timeout(280 if PLAN.outage < 60 else 3600)
def test_nothing_is_lost_and_nothing_is_there_twice(driver: Driver, server: Server, tmp_path: Path) -> None:
    play(driver, server)
    storage = f"sqlite:///{tmp_path / 'home' / 'optuna.db'}"
    trials = optuna.load_study(study_name="chaos", storage=storage).trials
    assert [trial.number for trial in trials] == list(range(PLAN.trials))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    client = MlflowClient(server.uri)
    children = children_of(client)
    for trial in trials:
        run = children[str(trial.number)]
        assert (run.info.status, run.data.tags["gpm.state"]) == ("FINISHED", "complete")
        assert sorted(trial.intermediate_values) == EVALUATIONS
        for metric in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, metric)
            steps = [run.data.metrics["nfe"]] if metric == f"{METRIC}_by_nfe" else EVALUATIONS
            assert [point.step for point in points] == steps, (trial.number, metric)
            if metric == METRIC:
                assert {point.step: point.value for point in points} == trial.intermediate_values
    check_values(storage)


def children_of(client: MlflowClient) -> dict[str, Run]:
    """The one run of each trial, by its number; all are children of the one run of the study."""
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    counts = Counter(run.data.tags["gpm.trial"] for run in children)
    assert counts == Counter(map(str, range(PLAN.trials)))
    return {run.data.tags["gpm.trial"]: run for run in children}


def check_values(storage: str) -> None:
    """A trial that went through all this has the values of one that nothing happened to."""
    record = read_study(storage, "chaos")
    for trial in record.trials[:2]:
        trainer = Trainer(Experiment.model_validate(space.put(record.experiment, trial.values)))
        while not trainer.done:
            trainer.run_interval()
        assert trainer.best is not None
        assert trainer.best.metrics[METRIC] == pytest.approx(trial.value, rel=1e-6)
