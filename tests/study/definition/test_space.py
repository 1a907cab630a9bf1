"""The search space: paths, conditions, and samples that always make an experiment."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from examples import KERNEL_FLOW, MODELS, POINTS, study_data, study_of
from hypothesis import given
from hypothesis import strategies as st

from gpm_tune.documents import Document
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import Study, load_study, shipped_studies
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
EITHER = {"model.name": {"choice": ["edm", "kernel_flow"]}}
MIXED = {"model.name": {"choice": ["edm", "discr_flow"]}}
STEPS = {"int": [2, 8]}
CHURN = {"float": [0.0, 9.0]}


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (LR, set()),
        ({"model.sampling_steps": STEPS}, {"model.sampling_steps"}),
        ({"model.solver.s_churn": CHURN}, {"model.solver.s_churn"}),
        ({"model.sampling_noise.rho": CHURN}, {"model.sampling_noise.rho"}),
        ({"model.solver": {"choice": [{"name": "heun"}, {"name": "euler"}]}}, {"model.solver"}),
        ({"model.training_noise.std": {"float": [0.5, 2.0]}}, set()),
        ({"evaluation.batch_size": STEPS, **LR}, {"evaluation.batch_size"}),
        ({"seed": STEPS}, set()),
        ({"model.no_such_key": STEPS}, set()),
        ({"model.denoiser.network.width": STEPS}, set()),
        ({**EITHER, "model.sampling_steps": STEPS}, {"model.sampling_steps"}),
        ({**MIXED, "model.sampling_steps": STEPS}, set()),
        (
            {**MIXED, "model.sampling_steps": {**STEPS, "when": {"model.name": "edm"}}},
            {"model.sampling_steps"},
        ),
        ({**MIXED, "model.sampling_steps": {**STEPS, "when": {"model.name": ["edm", "discr_flow"]}}}, set()),
        (
            {**MIXED, "model.solver.s_churn": {**CHURN, "when": {"model.name": "edm"}}},
            {"model.solver.s_churn"},
        ),
        ({"model": {"choice": [MODELS["edm"], POINTS["model"]]}, "model.sampling_steps": STEPS}, set()),
    ],
    ids=str,
)
def test_searched_paths_are_inference_only_in_whatever_the_search_chooses(
    search: dict[str, Any], expected: set[str]
) -> None:
    study = Study.model_validate(study_data(experiment=EDM, search=search))
    assert space.inference_only(study.base, study.search) == expected
    assert study.searches_training is (expected != set(search))


def test_the_base_decides_where_nothing_else_is_chosen() -> None:
    study = study_of(search={"model.sampling_steps": STEPS, "model.eta": {"float": [1.0, 9.0]}})
    assert space.inference_only(study.base, study.search) == set(), "particles are simulated in training"
    free = study_of(experiment=KERNEL_FLOW, search={"model.eta": {"float": [1.0, 20.0]}})
    assert not free.searches_training


@pytest.mark.parametrize("path", sorted(shipped_studies().glob("*.yaml")), ids=lambda path: path.stem)
def test_the_paths_of_shipped_studies_are_split_as_their_experiments_are(path: Path) -> None:
    """What is inference-only in the search is what leaves the trained part of every experiment as it is."""
    study = load_study(Document.load(path))
    for searched, distribution in study.search.items():
        premises = space._premises(study.search, searched)
        experiments = [
            Experiment.model_validate(space.put(study.base, {**premises, searched: value}))
            for value in distribution.boundary_values
        ]
        is_one = all(each.trained_part() == experiments[0].trained_part() for each in experiments)
        assert (searched in space.inference_only(study.base, study.search)) is is_one, searched
