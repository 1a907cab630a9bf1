"""The forecast of what a study costs: its arithmetic, and what it measures."""

from pathlib import Path
from typing import Any

import pytest
from examples import MODELS, experiment_of, shipped_experiment, study_of
from hypothesis import given
from hypothesis import strategies as st

from gpm_tune.study.cluster.capacity import Capacity, Growth, Node
from gpm_tune.study.definition.schedulers import ASHA, HyperBand, Median, NoScheduler
from gpm_tune.study.storage.home import Home
from gpm_tune.study.views.forecast import extrapolate, forecast
from gpm_tune.training.loop import Asker, train_teacher
from gpm_tune.training.profiling import GPUMemory, Pace, measure_pace


def capacity_of(trials: int) -> Capacity:
    """A machine on which so many trials fit."""
    return Capacity([Node({"CPU": float(trials), "GPU": float(trials)})])


def test_successive_halving_trains_what_its_rungs_let_through() -> None:
    # 9 trials of 1 step each, 3 of them 2 more, 1 of them 6 more: 21 of 81.
    assert ASHA(name="asha", grace_steps=1, reduction_factor=3).usual_share(9) == pytest.approx(21 / 81)
    # Its brackets begin at 1, 3 and 9 steps: 21, 9 * 3 + 3 * 6, and all of 81.
    band = HyperBand(name="hyperband", grace_steps=1, reduction_factor=3)
    assert band.usual_share(9) == pytest.approx((21 + 45 + 81) / 3 / 81)
    assert Median(name="median", grace_steps=3).usual_share(9) == pytest.approx(2 / 3)
    assert NoScheduler(name="none").usual_share(9) == 1


@given(st.integers(1, 10**6), st.integers(2, 9), st.integers(1, 10**6))
def test_shares_are_shares(grace: int, factor: int, steps: int) -> None:
    options: dict[str, Any] = {"grace_steps": grace, "reduction_factor": factor}
    asha = ASHA(name="asha", **options).usual_share(steps)
    band = HyperBand(name="hyperband", **options).usual_share(steps)
    assert 0 < asha <= band + 1e-9 <= 1 + 2e-9


def test_hours_follow_from_the_pace() -> None:
    study = study_of(
        search={"seed": {"int": [0, 99]}},  # every trial costs the same
        budget={"trials": 6, "hours": 3.0},
        confirm={"trials": 2, "seeds": 3},
        resources={"cpu": 1, "gpu": 0.5},
        scheduler={"name": "asha", "grace_steps": 4, "reduction_factor": 3},
    )
    # 12 steps, of which every fourth is evaluated: 1 hour.
    found = extrapolate(study, [Pace("GPU", 240.0, 240.0)], capacity_of(4))
    assert found.trial_hours == pytest.approx(1)
    search, confirm = found.parts
    share = (4 + 8 / 3) / 12
    assert (search.name, search.trainings) == ("search", 6)
    assert search.hours == pytest.approx((2 * share, 2))  # two rounds of four
    assert search.gpu_hours == pytest.approx((3 * share, 3))
    assert (confirm.name, confirm.trainings) == ("confirm", 6)
    assert confirm.hours == pytest.approx((2, 2))
    assert confirm.gpu_hours == pytest.approx((3, 3))
    assert found.ends_early == []


def test_nodes_cost_what_the_file_says_while_they_are_needed() -> None:
    study = study_of(search={"seed": {"int": [0, 99]}}, budget={"trials": 6}, resources={"cpu": 2})
    spot = Node({"CPU": 4.0}, "spot", price=0.5)
    cluster = Capacity([Node({}, "head", price=0.25)], Growth(((spot, 2),), workers=2))
    (search,) = extrapolate(study, [Pace("CPU", 240.0, 240.0)], cluster).parts
    assert search.hours == pytest.approx((2, 2))  # two rounds of four
    assert search.dollars == pytest.approx((2 * 1.25, 2 * 1.25))
    assert extrapolate(study, [Pace("CPU", 240.0, 240.0)], capacity_of(8)).parts[0].dollars is None


def test_a_budget_that_ends_the_search_is_named() -> None:
    study = study_of(search={"seed": {"int": [0, 99]}}, budget={"trials": 8, "hours": 2.0})
    found = extrapolate(study, [Pace("CPU", 240.0, 240.0)], capacity_of(1))
    assert found.ends_early == ["budget.hours (2) suffices for 2 of 8 trials"]


def test_larger_trials_are_forecast_to_take_longer() -> None:
    def hours(width: int) -> float:
        search = {"model.discriminator.width": {"choice": [width]}, "seed": {"int": [0, 99]}}
        study = study_of(search=search, start_from=[])
        return extrapolate(study, [Pace("CPU", 1.0, 1.0)], capacity_of(1)).trial_hours

    assert hours(16) == pytest.approx((12 + 3) / 3600)
    assert hours(64) > 4 * hours(16)


def test_a_trial_that_exceeds_its_share_of_a_gpu_is_named() -> None:
    """The base takes 3 GB; what wider trials and larger batches take besides is counted."""

    def warning(gpu: float, total: float, batch_size: int = 8, taken: float = 3e9) -> str | None:
        study = study_of(
            search={"training.batch_size": {"choice": [batch_size]}, "seed": {"int": [0, 99]}},
            start_from=[],
            experiment=experiment_of(training__batch_size=8).model_dump(mode="json"),
            resources={"cpu": 1, "gpu": gpu},
        )
        pace = Pace("GPU", 1.0, 1.0, GPUMemory(int(taken), int(1e9), int(total)))
        return extrapolate(study, [pace], capacity_of(1)).too_large

    assert warning(0.5, 6.1e9) is None
    assert warning(1, 3.1e9) is None
    found = warning(0.25, 8e9)
    assert found is not None
    assert "about 3 GB" in found
    assert "resources.gpu (0.25) leaves it 2 of 8 GB" in found
    assert warning(0.5, 6.1e9, batch_size=1_000_000) is not None


def test_a_cpu_has_no_share_to_exceed() -> None:
    assert extrapolate(study_of(), [Pace("CPU", 1.0, 1.0)], capacity_of(1)).too_large is None


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_measured_without_data_and_without_a_trained_teacher(name: str) -> None:
    pace = measure_pace(experiment_of(model=MODELS[name]), "cpu", 1)
    assert pace.step > 0
    assert pace.evaluation > 0


def test_images_are_measured_without_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "nothing"))
    small = {"model.discriminator.width": 4, "model.sampling_steps": 16, "training.batch_size": 2}
    few = {"evaluation.features": "small", "evaluation.samples": 8, "evaluation.nfe": []}
    pace = measure_pace(shipped_experiment("discr_flow.yaml", small | few), "cpu", 1)
    assert pace.step > 0
    assert not (tmp_path / "nothing").exists()


def test_a_trained_teacher_costs_nothing_more(tmp_path: Path) -> None:
    home = Home(tmp_path)
    experiment = experiment_of(model=MODELS["score_gan"]).model_dump(mode="json")
    study = study_of(experiment=experiment, search={"seed": {"int": [0, 99]}})
    teacher = study.experiment.teacher
    assert teacher is not None
    assert [part.name for part in forecast(study, home, "local").parts] == ["teacher", "search"]
    train_teacher(study.experiment, home.open_runs(), Asker("test", "a test"), "cpu")
    assert [part.name for part in forecast(study, home, "local").parts] == ["search"]
