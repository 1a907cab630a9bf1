"""Distributions: what is refused, what they contain, and what Optuna draws from them."""

from decimal import Decimal
from typing import Any

import optuna
import pytest
from hypothesis import given as for_any
from hypothesis import settings
from hypothesis import strategies as st
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
        ({"float": [0.05, 0.15], "step": 0.11}, "the step 0.11 is greater than the range from 0.05 to 0.15"),
        ({"float": [0, 1], "step": 1e-8}, "the step 1e-08 is too small"),
        ({"float": [1e9, 1e9 + 1], "step": 0.1}, "the step 0.1 is too small"),
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
        ({"float": [0.1, 0.7], "step": 0.2}, [0.1, 0.3, 0.7, 0.1 + 0.2, 0.1 + 3 * 0.2], [0.9, -0.1, 0.7001]),
        ({"float": [0.05, 0.25], "step": 0.15}, [0.05, 0.2], [0.25, float("nan"), float("inf"), 10**400]),
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


@st.composite
def stepped(draw: st.DrawFn) -> tuple[Any, list[float]]:
    """A range with a step, whose low end is negative or not, and all of its values, in decimals."""
    places = draw(st.integers(0, 6))
    low, step = draw(st.integers(-2000, 2000)), draw(st.integers(1, 500))
    count = draw(st.integers(1, 40))
    high = low + step * count + draw(st.integers(0, step - 1))
    low, high, step = (Decimal(number).scaleb(-places) for number in (low, high, step))
    given = {"float": [float(low), float(high)], "step": float(step)}
    return ADAPTER.validate_python(given), [float(low + index * step) for index in range(count + 1)]


@for_any(stepped(), st.floats(-3, 3), st.integers(0, 2**31 - 1))
@settings(max_examples=200)
def test_every_way_to_a_value_of_a_stepped_range_leads_to_the_same_decimals(
    case: tuple[Any, list[float]], factor: float, seed: int
) -> None:
    distribution, values = case
    assert distribution.enumerate_values(None) == values
    assert distribution.enumerate_values(3) == values, "points are for ranges without a step"
    assert distribution.boundary_values == [values[0], values[-1]]
    assert all(distribution.contains(value) for value in values)
    assert {distribution.perturbed(value, factor) for value in values} <= set(values)
    computed = [values[0] + index * distribution.step for index in range(len(values))]
    assert [distribution.encode(value) for value in computed] == values, "as floats add up"
    assert all(distribution.contains(value) for value in computed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for value in computed:
        study.enqueue_trial({"path": value})
    assert [distribution.suggest(study.ask(), "path") for _ in computed] == values
    assert {distribution.suggest(study.ask(), "path") for _ in range(20)} <= set(values)
    for value in values:  # as a warm start makes them
        optuna.create_trial(params={"path": value}, distributions={"path": distribution.for_optuna}, value=0)


@for_any(st.floats(1e-300, 1e300), st.floats(1.0, 1e6), st.integers(2, 30), st.booleans())
def test_even_grids_have_exact_ends_stay_inside_and_repeat_nothing(
    low: float, ratio: float, points: int, log: bool
) -> None:
    distribution = ADAPTER.validate_python({"float": [low, low * ratio], "log": log})
    values = distribution.enumerate_values(points)
    assert (values[0], values[-1]) == (low, low * ratio)
    assert values == sorted(set(values))
    assert len(values) == points or ratio < 1.001
    assert all(distribution.contains(value) for value in values)


def test_whole_numbers_for_a_real_range_are_its_values() -> None:
    distribution = ADAPTER.validate_python({"float": [1.0, 5.0]})
    assert repr(distribution.encode(3)) == "3.0"
