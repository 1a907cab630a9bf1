"""The sweep: every NFE and solver from few simulations, with the values that each would have alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import IMAGE_MODELS, IMAGES, MODELS, experiment_of

from gpm_tune.errors import UserError
from gpm_tune.metrics import DEFAULTS, Points, Quality, Real
from gpm_tune.models import Samples
from gpm_tune.training import Experiment, Trainer, sweep
from gpm_tune.training.generation import ModelSampler, load_sampler
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.sweep import Conditions, Measurement, evaluate, last_within, plan


def measure(saved: SavedModel, cache: Path, **changes: Any) -> list[Measurement]:
    how = {"split": "test", "samples": 300, "seed": 0, "resamples": 0, "metrics": ()}
    conditions = Conditions(**{**how, **{key: changes.pop(key) for key in how if key in changes}})
    keys: dict[str, Any] = {"nfe": (), "solvers": (), "cache": cache, "device": "cpu", **changes}
    return evaluate(saved, conditions=conditions, **keys)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [((2, 3), [2, 2]), ((3, None), [2, 8]), ((None,), [8]), ((100,), [8]), ((1,), []), ((2, 4, 5), [2, 4])],
)
def test_the_last_state_within_each_nfe_is_taken(asked: tuple[int | None, ...], expected: list[int]) -> None:
    path = [Samples(nfe, torch.zeros(1)) for nfe in (0, 2, 4, 8)]
    assert [state.nfe for state in last_within(path, asked)] == sorted(set(expected))


def test_nothing_is_simulated_beyond_the_last_nfe() -> None:
    def path():
        yield Samples(0, torch.zeros(1))
        yield Samples(1, torch.zeros(1))
        yield Samples(2, torch.zeros(1))
        raise AssertionError("followed too far")

    assert [state.nfe for state in last_within(path(), (1,))] == [1]


def test_early_stops_share_one_simulation_and_grids_of_their_own_do_not(runs: dict[str, SavedModel]) -> None:
    def simulations(run: str, **how: Any) -> list[tuple[int | None, ...]]:
        whole = load_sampler(runs[run])
        samplers = [ModelSampler(whole.experiment, whole.model, n, **how) for n in (1, 2, 4)]
        return [simulation.asked for simulation in plan(samplers)]

    assert simulations("discr_flow") == [(1, 2, 4)]
    assert simulations("edm", solver="euler", steps=8) == [(1, 2, 4)]
    assert simulations("edm", solver="euler") == [(1,), (2,), (4,)]
    assert simulations("edm", solver="heun") == [(1, 2), (4,)], "NFE 2 does not pay for a second step"


@pytest.mark.parametrize(("run", "nfe"), [("discr_flow", [1, 3, 6]), ("edm", [1, 5, 9]), ("gan", [1])])
def test_a_sweep_has_the_values_of_single_evaluations(
    run: str, nfe: list[int], runs: dict[str, SavedModel], tmp_path: Path
) -> None:
    together = measure(runs[run], tmp_path / "a", nfe=nfe)
    alone = [found for n in nfe for found in measure(runs[run], tmp_path / "b", nfe=[n])]
    assert together == alone
    assert [found.nfe for found in together] == nfe


def test_samples_are_those_that_the_sampler_draws(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    (found,) = measure(runs["discr_flow"], tmp_path, nfe=[4], samples=1200)
    sampler = load_sampler(runs["discr_flow"], nfe=4)
    data = sampler.experiment.data.load(sampler.experiment.seed)
    means, std = sampler.experiment.modes
    real = Real(data.test[:200], Points("cpu"), means=means, std=std)
    expected = Quality(DEFAULTS["points"], real)
    assert found.metrics == pytest.approx(expected(sampler.draw(1200, seed=0)[1]))


def test_what_was_measured_is_not_measured_again(
    runs: dict[str, SavedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(runs["edm"], tmp_path, nfe=[4, 8], solvers=["euler"])
    monkeypatch.setattr(sweep, "build_quality", None)  # measuring would fail
    assert measure(runs["edm"], tmp_path, nfe=[4, 8], solvers=["euler"]) == first
    for other in ({"seed": 1}, {"samples": 200}, {"split": "validation"}, {"resamples": 3}):
        with pytest.raises(TypeError):
            measure(runs["edm"], tmp_path, nfe=[4], solvers=["euler"], **other)


def test_a_damaged_record_is_measured_again(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    first = measure(runs["gan"], tmp_path)
    (record,) = (tmp_path / "measurements").glob("*.json")
    record.write_text(json.dumps([{"nfe": 1}]))
    assert measure(runs["gan"], tmp_path) == first
    assert json.loads(record.read_text())[0]["metrics"] == first[0].metrics


def test_errors_come_with_resamples(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    (plain,) = measure(runs["images"], tmp_path, samples=40, resamples=5)
    assert set(plain.errors) == set(plain.metrics) == {"fid"}
    names = ("recall", "fid", "kid")
    (found,) = measure(runs["images"], tmp_path, samples=40, resamples=5, metrics=names)
    assert tuple(found.errors) == tuple(found.metrics) == names
    assert found.metrics["fid"] == plain.metrics["fid"]
    assert found.errors["fid"] > 0
    assert (found.solver, found.sampling_steps, found.features) == ("heun", 2, "small")
    with pytest.raises(UserError, match="needs at least 2 resamples"):
        measure(runs["images"], tmp_path, resamples=1)


def test_standard_errors_of_too_few_samples_are_refused(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    """A resample of two samples is one sample alone every other time."""
    for samples in (2, 9):
        with pytest.raises(
            UserError, match=f"standard errors need at least 10 samples, not {samples}: raise"
        ):
            measure(runs["edm"], tmp_path, samples=samples, resamples=3)
    (found,) = measure(runs["edm"], tmp_path, samples=2)
    assert not found.errors
    for seed in range(20):
        (found,) = measure(runs["gan"], tmp_path, samples=10, resamples=3, seed=seed)
        json.dumps(found.plain(), allow_nan=False)


def test_metrics_that_are_no_numbers_are_refused(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    (found,) = measure(runs["edm"], tmp_path)
    found.check_finite()
    for broken in (
        replace(found, metrics={"energy_distance": math.inf}),
        replace(found, errors={"frechet": math.nan}),
    ):
        with pytest.raises(UserError, match=r"is (inf|nan) with heun, NFE 15, 300 samples"):
            broken.check_finite()


def test_an_evaluation_measures_every_solver_at_every_nfe(
    runs: dict[str, SavedModel], tmp_path: Path
) -> None:
    found = measure(runs["edm"], tmp_path, nfe=[4, 8], solvers=["euler", "heun"])
    assert [(m.solver, m.nfe) for m in found] == [("euler", 4), ("euler", 8), ("heun", 3), ("heun", 7)]
    assert all(set(m.metrics) >= {"sliced_wasserstein", "frechet"} for m in found)
    assert {(m.samples, m.split, m.seed, m.features) for m in found} == {(300, "test", 0, None)}


@pytest.mark.parametrize(
    "experiment",
    [
        experiment_of(model=MODELS["gan"]),
        experiment_of(
            **{**IMAGES, "model": IMAGE_MODELS["gan"]},
            evaluation__metrics=["fid_infinity", "fid", "precision"],
        ),
    ],
    ids=["points", "images"],
)
def test_an_evaluation_reproduces_what_training_measured(experiment: Experiment, tmp_path: Path) -> None:
    trainer = Trainer(experiment)
    measured = trainer.run_interval()
    assert measured is not None
    trainer.save(tmp_path)
    (found,) = measure(SavedModel.at(tmp_path), tmp_path, split="validation", samples=None)
    assert found.metrics == pytest.approx(measured.measured.metrics)
    assert list(found.metrics) == list(experiment.metrics)


def test_unknown_splits_are_refused(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown split 'valid'; did you mean 'validation'"):
        measure(runs["gan"], tmp_path, split="valid")
