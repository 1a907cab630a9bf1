"""The search space: paths, conditions, and samples that always make an experiment."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from examples import KERNEL_FLOW, MODELS, POINTS, study_of
from hypothesis import given
from hypothesis import strategies as st

from gpm_tune.documents import Document
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import load_study, shipped_studies
from gpm_tune.training import Experiment

KEYS = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
PATHS = st.lists(KEYS, min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(KEYS, TREES), PATHS, st.integers())
def test_what_was_put_is_got_and_the_original_stays(tree: dict[str, Any], path: str, value: int) -> None:
    before = repr(tree)
    changed = space.put(tree, {path: value})
    assert space.get(changed, path) == value
    assert repr(tree) == before


def test_a_new_name_starts_the_other_keys_afresh() -> None:
    """Another member of a union has other keys; which of its values is set first does not matter."""
    tree = {"solver": {"name": "heun", "s_churn": 1.0}}
    assert space.put(tree, {"solver.name": "euler"}) == {"solver": {"name": "euler"}}
    assert space.put(tree, {"solver.name": "heun"}) == tree
    values = {"solver.stochastic": 0.5, "solver.name": "euler"}
    assert space.put(tree, values) == {"solver": {"name": "euler", "stochastic": 0.5}}


def test_a_path_that_is_not_there_is_missing() -> None:
    assert space.get({"a": {"b": 1}}, "a.c") is space.MISSING
    assert space.get({"a": 1}, "a.b") is space.MISSING


def test_conditions_come_before_what_they_decide() -> None:
    study = study_of()
    order = space.in_order(dict(reversed(study.search.items())))
    assert order.index("model.loss") < order.index("training.optimizer.lr")


def test_conditions_in_a_circle_are_refused() -> None:
    search = study_of().search
    lr = search["training.optimizer.lr"]
    circle = {"a": lr.model_copy(update={"when": {"b": 1}}), "b": lr.model_copy(update={"when": {"a": 1}})}
    with pytest.raises(ValueError, match="circular conditions: a, b"):
        space.in_order(circle)


def test_samples_respect_conditions_and_always_make_an_experiment() -> None:
    study = study_of()
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(200):
        values = space.sample(trials.ask(), study.base, study.search)
        assert ("training.optimizer.lr" in values) == (values["model.loss"] == "vanilla")
        experiment = Experiment.model_validate(space.put(study.base, values))
        assert experiment.model.sampling_steps == values["model.sampling_steps"]
        seen.add((values["model.loss"], values["model.sampling_steps"]))
    assert len(seen) == 8, "all combinations of two losses and four step counts"


def test_the_start_point_has_the_bases_values_where_conditions_hold() -> None:
    study = study_of()
    assert space.parameters(study.base, study.base, study.search)["training.optimizer.lr"] == 2e-4
    ipm = space.put(POINTS, {"model.loss": "ipm"})
    assert "training.optimizer.lr" not in space.parameters(ipm, study.base, study.search)


EDM = {**POINTS, "model": MODELS["edm"]}
LR = {"training.optimizer.lr": {"float": [1e-4, 1e-2]}}
STEPS = {"int": [2, 8]}
CHURN = {"float": [0.0, 9.0]}


@pytest.mark.parametrize(
    ("search", "is_trained"),
    [
        (LR, True),
        ({"model.sampling_steps": STEPS}, False),
        ({"model.solver.s_churn": CHURN}, False),
        ({"model.sampling_noise.rho": {"float": [1.0, 9.0]}}, False),
        ({"model.solver": {"choice": [{"name": "heun"}, {"name": "euler"}]}}, False),
        (
            {
                "model.solver.name": {"choice": ["heun", "euler"]},
                "model.solver.s_churn": {**CHURN, "when": {"model.solver.name": "heun"}},
            },
            False,
        ),
        ({"model.training_noise.std": {"float": [0.5, 2.0]}}, True),
        ({"evaluation.batch_size": STEPS}, False),
        ({"evaluation.batch_size": STEPS, **LR}, True),
        ({"seed": STEPS}, True),
        ({"training.steps": STEPS}, True),
        ({"model": {"choice": [MODELS["edm"], POINTS["model"]]}}, True),
    ],
    ids=str,
)
def test_a_search_of_inference_only_keys_has_one_training(search: dict[str, Any], is_trained: bool) -> None:
    assert study_of(experiment=EDM, search=search, start_from=[]).searches_training is is_trained


def test_the_model_decides_what_is_trained() -> None:
    steps = study_of(search={"model.sampling_steps": STEPS})
    assert steps.searches_training, "particles are simulated in training"
    free = study_of(experiment=KERNEL_FLOW, search={"model.eta": {"float": [1.0, 20.0]}})
    assert not free.searches_training


@pytest.mark.parametrize("path", sorted(shipped_studies().glob("*.yaml")), ids=lambda path: path.stem)
def test_trials_of_shipped_studies_share_a_training_where_their_experiments_do(path: Path) -> None:
    study = load_study(Document.load(path))
    drawn = [spec.experiment.trained_part() for spec in TrialManager(study, storage=None).draw(8)]
    assert study.searches_training is any(part != drawn[0] for part in drawn)
