"""What was trained under a name, from training runs alone: whose evaluations they are, and whose seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from examples import MODELS, POINTS, experiment_of, measured, study_of
from hands import run_trials
from rich.console import Console

from gpm_tune.analysis import compute, study_frames
from gpm_tune.analysis.report import render
from gpm_tune.analysis.study_data import read_data
from gpm_tune.errors import UnknownError
from gpm_tune.study.accounts.records import StudyRecord, TrialRecord, read_study
from gpm_tune.study.accounts.trained import evaluations_of, read_trained, seconds_of_others
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.running.single import train
from gpm_tune.study.storage.home import Home
from gpm_tune.study.views.results import shared
from gpm_tune.training import Objective
from gpm_tune.training.run import TrainingRun
from gpm_tune.training.trainer import Evaluation
from gpm_tune.version import __version__

RHO = "model.sampling_noise.rho"
METRIC = "sliced_wasserstein"
EXPERIMENT = experiment_of()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")


def measure(run: TrainingRun, step: int, seconds: float, user: str, judge: str) -> None:
    run.keep_evaluation(Evaluation(step, measured(1.0 / step, seconds=seconds), b"png"), judge, "cpu", user)


def study_of_one(**changes: Any) -> tuple[StudyRecord, TrialRecord]:
    absent = ("scores", "measured", "best_step", "reason", "forked_from", "confirms")
    fields: dict[str, Any] = dict.fromkeys(absent)
    fields |= {"state": "complete", "values": {}, "feasible": True, "step": 12, "seconds": 6.0}
    trial = TrialRecord(number=0, **{**fields, **changes})
    goals = [Objective(metric=METRIC, mode="min")]
    return StudyRecord("small", "0" * 32, goals, None, POINTS, [], 0.0, 0.0, [trial]), trial


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"told": [4, 8, 12]}, [4, 8, 12]),
        ({"told": [4, 8]}, [4, 8]),
        ({"told": [4, 8, 12], "forked_from": "trial 3, step 4"}, [8, 12]),
    ],
)
def test_evaluations_are_a_trials_by_its_judge_that_it_told_and_after_its_fork(
    home: Home, changes: dict[str, Any], steps: list[int]
) -> None:
    run, (study, trial) = home.open_runs().named("points"), study_of_one(**changes)
    for step in (4, 8, 12, 16):
        measure(run, step, step / 2, "study", EXPERIMENT.judge(study.objective))
    measure(run, 6, 3.0, "another", "another")
    found = evaluations_of(study, trial, EXPERIMENT, run)
    assert [record.step for record in found] == steps
    assert {record.version for record in found} == {__version__}


def test_seconds_are_of_whom_they_were_trained_for(home: Home) -> None:
    run = home.open_runs().named("points")
    for step, seconds, user in ((4, 2.0, "one"), (8, 4.0, "other"), (12, 6.5, "one")):
        measure(run, step, seconds, user, "judge")
    measure(run, 10, 6.5, "third", "anew")  # of weights that are there already
    assert [seconds_of_others(run, "one", until) for until in (2.0, 3.0, 4.0, 6.5)] == [0.0, 1.0, 2.0, 2.0]
    assert [seconds_of_others(run, "other", until) for until in (2.0, 6.5)] == [2.0, 4.5]
    assert seconds_of_others(run, "third", 6.5) == 6.5


def test_single_experiments_are_found_by_name_with_what_each_asked_for(home: Home) -> None:
    teacher = experiment_of(model=MODELS["edm"], training__steps=4)
    model = {**MODELS["score_gan"], "teacher": {"experiment": teacher.model_dump(mode="json")}}
    first = experiment_of(model=model, training__steps=4)
    longer = experiment_of(model=model, training__steps=8)
    for experiment in (first, longer):
        assert train(experiment, "alone-2", home, "cpu", Console(quiet=True)).finished
    assert len(home.runs.names()) == 2, "one training, and its teacher's"
    found = sorted(read_trained(home, "alone-2"), key=lambda each: each.experiment.training.steps)
    assert [each.experiment for each in found] == [first, longer]
    assert {(each.stage, each.trial, each.state, each.run) for each in found} == {
        ("single", None, "complete", first.run_name)
    }
    assert [max(record.step for record in each.evaluations) for each in found] == [4, 8]
    assert {each.data_fingerprint for each in found} == {first.fingerprints["data"]}
    with pytest.raises(UnknownError, match=r"'alone': no study or single .* did you mean 'alone-2'"):
        read_trained(home, "alone")


def test_trials_are_found_by_their_studys_name(home: Home) -> None:
    with pytest.raises(UnknownError, match="nothing was trained there yet"):
        read_trained(home, "small")
    manager = TrialManager(study_of(), home.optuna_uri)
    assert read_trained(home, "small") == []
    spec = manager.next()
    assert spec
    run = home.open_runs().of(spec.experiment)
    manager.keep_run(0, run.name)
    measure(run, 4, 2.0, "study", spec.experiment.judge(manager.study.objective))
    manager.report(0, 4, measured(0.25, seconds=2.0))
    (found,) = read_trained(home, "small")
    fingerprint = read_study(home.optuna_uri, "small").data_fingerprint
    assert (found.stage, found.trial, found.state) == ("search", 0, "running")
    assert (found.run, found.data_fingerprint) == (run.name, fingerprint)
    assert [record.metrics[METRIC] for record in found.evaluations] == [0.25]


def test_seconds_of_a_shared_run_are_of_whom_it_was_trained_for(home: Home) -> None:
    noise = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    changes: dict[str, Any] = {
        "experiment": {**POINTS, "model": {**MODELS["edm"], "sampling_noise": noise}},
        "search": {RHO: {"choice": [3.0, 5.0, 7.0]}},
        "sampler": {"name": "brute_force"},
        "budget": {"trials": 3},
        "start_from": [],
    }
    run_trials(study_of(name="first", **changes), home)
    run_trials(study_of(name="again", **changes), home)
    first, again = read_data(home, "first"), read_data(home, "again")
    (run,) = home.runs.names()
    seconds = study_frames.trials(first)["seconds"]
    trained = max(trial.seconds for trial in first.record.trials)
    assert seconds.tolist() == [trained, 0.0, 0.0]
    assert study_frames.trials(again)["seconds"].tolist() == [0.0, 0.0, 0.0]
    assert shared(again.record) == [f"trials 0, 1, 2 share the training run {run}"]
    assert f"{trained:.1f} s of the training run {run} were trained for others" in render(again)
    assert "were trained for others" not in render(first)
    costs = compute.progress(home, ["first"], "sliced_wasserstein")
    assert set(costs["trial"]) == {0, 1, 2}
    assert costs[costs["is_best"]]["trial"].nunique() == 1, "each trial has its own line"
