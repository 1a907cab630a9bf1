"""Distributions: what is refused, what they contain, and what Optuna draws from them."""

from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter, ValidationError

from gpm_tune.study.definition.distributions import AnyDistribution

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyDistribution)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"float": [2, 1]}, "the low end 2.0 is above the high end 1.0"),
        ({"int": [2, 1]}, "the low end 2 is above the high end 1"),
        ({"float": [0, 1], "log": True}, "needs a low end above 0"),
        ({"float": [1, 2], "log": True, "step": 0.1}, "exclude each other"),
        ({"int": [1, 2], "lg": True}, "did you mean 'log'"),
        ({"int": [1.5, 2]}, "valid integer"),
        ({"float": [1]}, "required"),
        ({"choice": []}, "at least 1 item"),
        ({"uniform": [1, 2]}, "expected {float: "),
        (3, "expected {float: "),
    ],
)
def test_what_is_no_distribution_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        ADAPTER.validate_python(given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "inside", "outside"),
    [
        ({"float": [0.5, 2.0]}, [0.5, 1, 2.0], [0.4, 2.1, "1", True, None]),
        ({"float": [0.0, 1.0], "step": 0.1}, [0.0, 0.3, 0.7], [0.05]),
        ({"int": [16, 128], "step": 16}, [16, 64, 128], [20, 17, 16.0, 144]),
        ({"choice": ["a", [1, 2]]}, ["a", [1, 2]], ["b", [1]]),
    ],
)
def test_start_points_must_be_contained(given: Any, inside: list[Any], outside: list[Any]) -> None:
    distribution = ADAPTER.validate_python(given)
    assert all(distribution.contains(value) for value in inside)
    assert not any(distribution.contains(value) for value in outside)


@pytest.mark.parametrize(
    "given",
    [
        {"float": [1e-4, 1e-1], "log": True},
        {"float": [0.0, 1.0], "step": 0.25},
        {"int": [4, 12], "step": 4},
        {"choice": [[0.5, 0.999], [0.0, 0.9], "x", None, {"a": 1}]},
    ],
)
def test_everything_drawn_is_contained_and_every_choice_is_drawn(given: Any) -> None:
    distribution = ADAPTER.validate_python(given)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [distribution.suggest(study.ask(), "path") for _ in range(60)]
    assert all(distribution.contains(value) for value in drawn)
    if "choice" in given:
        assert all(choice in drawn for choice in given["choice"])


def test_a_choice_is_known_whatever_the_order_of_its_keys() -> None:
    distribution = ADAPTER.validate_python({"choice": [{"name": "mlp", "width": 8}, [{"a": 1, "b": 2}]]})
    study = optuna.create_study()
    for value in ({"width": 8, "name": "mlp"}, [{"b": 2, "a": 1}]):
        assert distribution.contains(value)
        study.enqueue_trial({"path": distribution.encode(value)})
        assert distribution.suggest(study.ask(), "path") == value
