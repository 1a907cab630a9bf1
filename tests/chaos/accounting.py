"""The study that the chaos tests run, and its accounts: nothing is lost, and nothing is there twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from examples import POINTS
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from program import write_study

from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.definition import space
from gpm_tune.training import Experiment, Trainer

STUDY = "chaos"
STEPS, EVERY = 2400, 400
EXPERIMENT = space.put(POINTS, {"training.steps": STEPS, "evaluation.every": EVERY, "evaluation.nfe": []})
EVALUATIONS = list(range(EVERY, STEPS + 1, EVERY))
METRIC = "sliced_wasserstein"


def write_chaos_study(folder: Path, trials: int, **changes: Any) -> Path:
    """The study in a file; a trial's values do not depend on how the others fared."""
    sampler = {"name": "random", "seed": 0}
    budget = {"trials": trials}
    return write_study(folder, name=STUDY, experiment=EXPERIMENT, sampler=sampler, budget=budget, **changes)


def check_accounts(storage: str, client: MlflowClient, trials: int) -> None:
    """Each trial is complete and was evaluated once at each step; Optuna and MLflow agree on every value."""
    found = optuna.load_study(study_name=STUDY, storage=storage).trials
    assert [trial.number for trial in found] == list(range(trials))
    assert {trial.state.name for trial in found} == {"COMPLETE"}
    children = children_of(client, trials)
    for trial in found:
        run = children[str(trial.number)]
        assert (run.info.status, run.data.tags["gpm.state"]) == ("FINISHED", "complete")
        assert sorted(trial.intermediate_values) == EVALUATIONS
        for metric in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, metric)
            if metric.startswith("best/"):
                last = max(points, key=lambda point: point.step)
                best = min(trial.intermediate_values, key=trial.intermediate_values.__getitem__)
                assert last.step == best, (trial.number, metric)
                assert metric != f"best/{METRIC}" or last.value == trial.value == run.data.metrics[metric]
                continue
            steps = [run.data.metrics["nfe"]] if metric == f"{METRIC}_by_nfe" else EVALUATIONS
            assert [point.step for point in points] == steps, (trial.number, metric)
            if metric == METRIC:
                assert {point.step: point.value for point in points} == trial.intermediate_values


def children_of(client: MlflowClient, trials: int) -> dict[str, Run]:
    """The one run of each trial, by its number; all are children of the one run of the study."""
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    counts = Counter(run.data.tags["gpm.trial"] for run in children)
    assert counts == Counter(map(str, range(trials)))
    return {run.data.tags["gpm.trial"]: run for run in children}


def check_values(storage: str) -> None:
    """A trial that went through all this has the values of one that nothing happened to."""
    record = read_study(storage, STUDY)
    for trial in record.trials[:2]:
        trainer = Trainer(Experiment.model_validate(space.put(record.experiment, trial.values)))
        while not trainer.done:
            trainer.run_interval()
        assert trainer.best is not None
        assert trainer.best.metrics[METRIC] == pytest.approx(trial.value, rel=1e-6)
