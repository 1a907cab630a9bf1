"""Every sampler draws what the space holds, alone and with several objectives; lists come to their end."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from examples import POINTS, measured, study_of

from gpm_tune.config import SEEDS
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import StudyConfig

SAMPLERS = ["tpe", "gp", "cmaes", "nsga2", "nsga3", "random", "quasi_random", "grid", "brute_force"]
FINITE: dict[str, Any] = {
    "model.loss": {"choice": ["ipm", "vanilla"]},
    "model.sampling_steps": {"int": [2, 8], "step": 2},
    "model.eta": {"float": [2.0, 8.0], "step": 3.0, "when": {"model.loss": "vanilla"}},
}


def run_to_the_end(study: StudyConfig, storage: str | None = None) -> list[dict[str, Any]]:
    """Values of all trials, whose objective is made up from their values."""
    manager, drawn = TrialManager(study, storage), []
    while (spec := manager.next()) is not None:
        drawn.append(spec.values)
        cost = spec.experiment.model.sampling_steps
        manager.report(spec.number, 12, measured(float(cost), frechet=2.0))
        manager.complete(spec.number)
    return drawn


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_what_the_space_holds(name: str) -> None:
    startup = {"startup_trials": 3} if name in ("tpe", "gp", "cmaes") else {}
    sampler = {"name": name, "seed": SEEDS - 1, **startup}
    base = space.put(POINTS, {"model.eta": 5.0})
    study = study_of(experiment=base, sampler=sampler, search=FINITE, budget={"trials": 9})
    drawn = run_to_the_end(study)
    assert len(drawn) == 9
    for values in drawn:
        assert values["model.sampling_steps"] in (2, 4, 6, 8)
        assert ("model.eta" in values) == (values["model.loss"] == "vanilla")
        assert values.get("model.eta", 2.0) in (2.0, 5.0, 8.0)
    assert run_to_the_end(study) == drawn, "the same seed draws the same"


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "cmaes"])
def test_several_objectives(name: str, tmp_path: Path) -> None:
    study = study_of(
        sampler={"name": name},
        search={"model.sampling_steps": FINITE["model.sampling_steps"]},
        objectives=[{"metric": "sliced_wasserstein"}, {"metric": "nfe"}],
        budget={"trials": 4},
    )
    assert len(run_to_the_end(study, f"sqlite:///{tmp_path / 'optuna.db'}")) == 4


@pytest.mark.parametrize(("name", "base_trials"), [("grid", 1), ("brute_force", 0)])
def test_a_list_comes_to_its_end_and_goes_on_after_a_restart(
    name: str, base_trials: int, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    starts = ["base"] * base_trials
    whole = {"sampler": {"name": name}, "search": FINITE, "start_from": starts}
    first = run_to_the_end(study_of(**whole, budget={"trials": 7}), storage)
    rest = run_to_the_end(study_of(**whole, budget={"trials": 100}), storage)
    assert (len(first), len(rest)) == (7, 9), "4 of ipm, 12 of vanilla, one of which may be the base"
    assert len({str(sorted(values.items())) for values in [*first, *rest]}) == 16


def test_points_of_a_grid_are_evenly_spaced() -> None:
    search = {"model.eta": {"float": [1.0, 16.0], "log": True}, "model.sampling_steps": {"int": [2, 10]}}
    study = study_of(search=search, sampler={"name": "grid", "points": 3}, start_from=[])
    drawn = run_to_the_end(
        study.model_copy(update={"budget": study.budget.model_copy(update={"trials": 50})})
    )
    assert {values["model.eta"] for values in drawn} == {1.0, 4.0, 16.0}
    assert {values["model.sampling_steps"] for values in drawn} == {2, 6, 10}
    assert len(drawn) == 9


STEPPED: dict[str, Any] = {
    "model.eta": {"float": [0.1, 0.7], "step": 0.2},
    "model.time_embedding.size": {"int": [8, 16], "step": 8},
}
ETAS = [0.1, 0.3, 0.5, 0.7]


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_decimals_whoever_draws(name: str, storage: str) -> None:
    study = study_of(search=STEPPED, start_from=[], sampler={"name": name}, budget={"trials": 8})
    drawn = run_to_the_end(study, storage)
    assert {values["model.eta"] for values in drawn} <= set(ETAS)
    assert {trial.values["model.eta"] for trial in read_study(storage, "small").trials} <= set(ETAS)


@pytest.mark.parametrize("name", ["grid", "brute_force"])
def test_no_combination_is_trained_twice_however_it_was_computed(name: str, storage: str) -> None:
    """Neither a start point, nor what another sampler drew, nor the list of an earlier version."""
    starts = [{"model.eta": 0.1 + 0.2}, {"model.eta": 0.7}]
    changes: dict[str, Any] = {"search": STEPPED, "start_from": starts}
    first = run_to_the_end(study_of(**changes, sampler={"name": "random"}, budget={"trials": 4}), storage)
    stored = optuna.load_study(study_name="small", storage=storage)
    stored.enqueue_trial({"model.eta": 0.1 + 3 * 0.2, "model.time_embedding.size": 16})
    rest = run_to_the_end(study_of(**changes, sampler={"name": name}, budget={"trials": 50}), storage)
    found = [tuple(values.values()) for values in [*first, *rest]]
    assert set(found) == {(eta, size) for eta in ETAS for size in (8, 16)}
    of_rest = found[len(first) :]
    assert len(set(of_rest)) == len(of_rest)
    assert not {*of_rest} & {*found[: len(first)]} - {(0.7, 16)}


def test_a_grid_over_a_single_value_has_it_once() -> None:
    search = {"model.eta": {"float": [2.0, 2.0]}, "model.sampling_steps": {"int": [2, 4], "step": 2}}
    study = study_of(search=search, sampler={"name": "grid"}, start_from=[], budget={"trials": 50})
    assert len(run_to_the_end(study)) == 2


def test_further_start_points_come_first(tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    best.write_text(study_yaml(space.put(POINTS, {"model.eta": 7.0})))
    starts = ["base", {"model.eta": 3.0, "model.sampling_steps": 6}, str(best)]
    manager = TrialManager(study_of(start_from=starts), None)
    etas = [spec.values["model.eta"] for _ in range(3) if (spec := manager.next())]
    assert etas == [5.0, 3.0, 7.0]


def study_yaml(experiment: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(experiment)


def test_a_warm_start_brings_values_onto_the_steps(storage: str) -> None:
    wide = {"model.eta": {"choice": [0.1 + 0.2, 0.4, 0.5]}}
    run_to_the_end(
        study_of(name="wide", search=wide, sampler={"name": "brute_force"}, start_from=[]), storage
    )
    narrow = {"model.eta": STEPPED["model.eta"]}
    study = study_of(search=narrow, warm_start=["wide"], sampler={"name": "grid"}, start_from=[])
    assert sorted(values["model.eta"] for values in run_to_the_end(study, storage)) == [0.1, 0.7]
    trials = optuna.load_study(study_name="small", storage=storage).trials
    learnt = [trial.params["model.eta"] for trial in trials if "origin" in trial.user_attrs]
    assert sorted(learnt) == [0.3, 0.5]


def test_a_warm_start_brings_the_trials_that_lie_within(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    wide = {"model.sampling_steps": {"int": [2, 8], "step": 2}}
    run_to_the_end(study_of(name="wide", search=wide, sampler={"name": "brute_force"}), storage)
    narrow = {"model.sampling_steps": {"int": [4, 8], "step": 2}, "model.eta": {"float": [1.0, 10.0]}}
    drawn = run_to_the_end(study_of(name="narrow", search=narrow, warm_start=["wide"]), storage)
    assert len(drawn) == 4, "what was learnt does not count as trials of this study"
    trials = optuna.load_study(study_name="narrow", storage=storage).trials
    learnt = [trial for trial in trials if "origin" in trial.user_attrs]
    assert sorted(trial.params["model.sampling_steps"] for trial in learnt) == [4, 6, 8]
    assert all(trial.params["model.eta"] == 5.0 for trial in learnt), "the base of the other study"
    assert len(read_study(storage, "narrow").trials) == 4
