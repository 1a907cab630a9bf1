"""Distributions: where the value of one key of the experiment comes from, in the search space."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Annotated, Any

import optuna
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from gpm_tune.config import Config

Scalar = str | int | float | bool | None
MAX_VALUES = 100_000  # values, or combinations of them, that are listed
MAX_STEPS = 1e7  # from 0 to the far end of a range: beyond, Optuna cannot tell them apart
STEP_TOLERANCE = 1e-8  # of a step, as Optuna's
EXACT = 2**53  # up to here numbers of 64 bits are whole


class Distribution(Config):
    """Where the value of one key of the experiment comes from."""

    when: dict[str, Scalar | list[Scalar]] = Field(
        {},
        description="Conditions: path -> the value, or values, under which this one is searched.",
    )

    @field_validator("when", mode="before")
    @classmethod
    def _refuse_odd_conditions(cls, when: Any) -> Any:
        for path, allowed in when.items() if isinstance(when, dict) else ():
            values = allowed if isinstance(allowed, list) else [allowed]
            if not values or not all(map(_is_scalar, values)):
                raise ValueError(f"the condition on '{path}' has neither a value nor a list of values")
        return when

    def snap(self, value: Any) -> Any:
        """The nearest value of the distribution, for numbers that were computed."""
        return value

    def encode(self, value: Any) -> Any:
        """A value as Optuna's parameter."""
        return self.snap(value)


class Range(Distribution):
    """Numbers between two bounds."""

    bounds: tuple[Any, Any]
    log: bool = Field(False, description="Search on a logarithmic scale.")
    step: Any

    @model_validator(mode="after")
    def _check(self) -> Range:
        low, high = self.bounds
        step = None if isinstance(low, int) and self.step == 1 else self.step
        if low > high:
            raise ValueError(f"the low end {low} is above the high end {high}")
        if self.log and low <= 0:
            raise ValueError(f"log: true needs a low end above 0, found {low}")
        if self.log and step is not None:
            raise ValueError("log and step exclude each other")
        if not math.isfinite(float(high) - float(low)):
            raise ValueError("the range is wider than the greatest number")
        if isinstance(low, int) and max(-low, high) > EXACT:
            raise ValueError(f"whole numbers beyond {EXACT:,} cannot be searched")
        if step is not None and _decimal(step) > _decimal(high) - _decimal(low) > 0:
            raise ValueError(f"the step {step} is greater than the range from {low} to {high}")
        if step is not None and max(-low, high) / step > MAX_STEPS:
            raise ValueError(f"the step {step} is too small for the range from {low} to {high}")
        return self

    @property
    def boundary_values(self) -> list[Any]:
        """Values that must all be valid in the experiment."""
        return list(self._reached)

    @property
    def _reached(self) -> tuple[Any, Any]:
        """The bounds, the upper one on the last step."""
        low, high = self.bounds
        if self.step is None:
            return low, high
        return low, self._at(int((_decimal(high) - _decimal(low)) // _decimal(self.step)))

    def _at(self, index: int) -> Any:
        """The value so many steps above the low end, computed in decimals, as people do: 0.1, 0.3, 0.5."""
        low = self.bounds[0]
        return type(low)(_decimal(low) + index * _decimal(self.step))


class FloatRange(Range):
    """A real number between two bounds."""

    bounds: tuple[float, float] = Field(alias="float", description="Lowest and highest value.")
    step: float | None = Field(None, gt=0, description="Only low, low + step, … are tried.")

    def suggest(self, trial: optuna.Trial, path: str) -> float:
        """Draw a value."""
        return self.snap(trial.suggest_float(path, *self._reached, log=self.log, step=self.step))

    @property
    def for_optuna(self) -> optuna.distributions.BaseDistribution:
        """What Optuna calls it."""
        return optuna.distributions.FloatDistribution(*self._reached, log=self.log, step=self.step)

    def snap(self, value: float) -> float:
        """The nearest value within the bounds and, where there is a step, on it."""
        low, high = self._reached
        inside = float(min(max(value, low), high))
        return float(self._at(round((inside - low) / self.step))) if self.step else inside

    def enumerate_values(self, points: int | None) -> list[float]:
        """All values, or so many evenly spaced ones. Raises ValueError where neither is possible."""
        low, high = self._reached
        if self.step:
            count = round((high - low) / self.step) + 1
            _refuse_long_lists(count)
            return [self._at(index) for index in range(count)]
        if points is None:
            raise ValueError("the range is continuous: add `step`")
        return _evenly(low, high, points, self.log)

    def perturbed(self, value: float, factor: float) -> float:
        """A value multiplied by a factor, within the bounds and on the steps."""
        return self.snap(value * factor)

    def contains(self, value: Any) -> bool:
        """Whether a start point may have this value."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        (low, high), slack = self._reached, STEP_TOLERANCE * (self.step or 0.0)
        return low - slack <= value <= high + slack and abs(value - self.snap(value)) <= slack


class IntRange(Range):
    """A whole number between two bounds."""

    bounds: tuple[int, int] = Field(alias="int", description="Lowest and highest value.")
    step: int = Field(1, ge=1, description="Only low, low + step, … are tried.")

    def suggest(self, trial: optuna.Trial, path: str) -> int:
        """Draw a value."""
        return trial.suggest_int(path, *self._reached, log=self.log, step=self.step)

    @property
    def for_optuna(self) -> optuna.distributions.BaseDistribution:
        """What Optuna calls it."""
        return optuna.distributions.IntDistribution(*self._reached, log=self.log, step=self.step)

    def enumerate_values(self, points: int | None) -> list[Any]:
        """All values, or at most so many evenly spaced ones where there is no step."""
        low, high = self.bounds
        values = range(low, high + 1, self.step)
        if points is None or self.step > 1 or len(values) <= points:
            _refuse_long_lists(len(values))
            return list(values)
        return sorted({round(value) for value in _evenly(low, high, points, self.log)})

    def perturbed(self, value: int, factor: float) -> int:
        """A value multiplied by a factor, at least a step away, within the bounds and on the steps."""
        low, high = self._reached
        least = self.step if factor > 1 else -self.step
        steps = round((value * factor - value) / self.step) * self.step
        moved = value + (steps if steps else least)
        return int(min(max(moved, low), high))

    def contains(self, value: Any) -> bool:
        """Whether a start point may have this value."""
        low, high = self.bounds
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and low <= value <= high and (value - low) % self.step == 0


class Choice(Distribution):
    """One of several values, of any type that the key takes."""

    choice: list[Any] = Field(min_length=1, description="The values.")

    @field_validator("choice")
    @classmethod
    def _refuse_repetitions(cls, choice: list[Any]) -> list[Any]:
        labels = [_label(value) for value in choice]
        for index, label in enumerate(labels):
            if label in labels[:index]:
                raise ValueError(f"the value {choice[index]!r} stands here a second time")
        return choice

    @property
    def boundary_values(self) -> list[Any]:
        """Values that must all be valid in the experiment."""
        return self.choice

    @property
    def for_optuna(self) -> optuna.distributions.BaseDistribution:
        """What Optuna calls it."""
        return optuna.distributions.CategoricalDistribution([self.encode(value) for value in self.choice])

    def enumerate_values(self, points: int | None) -> list[Any]:
        """All values."""
        del points
        return self.choice

    def perturbed(self, value: Any, factor: float) -> Any:
        """The same value: choices have no neighbours."""
        del factor
        return value

    def suggest(self, trial: optuna.Trial, path: str) -> Any:
        """Draw a value."""
        labels = [self.encode(value) for value in self.choice]
        return self.choice[labels.index(trial.suggest_categorical(path, labels))]

    def contains(self, value: Any) -> bool:
        """Whether a start point may have this value."""
        return value in self.choice

    def encode(self, value: Any) -> Any:
        """Optuna's categories are scalars: lists and mappings become JSON, as the file has them."""
        return _label(self.choice[self.choice.index(value)])


def _label(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _is_scalar(value: Any) -> bool:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return is_number or value is None or isinstance(value, str)


def _refuse_long_lists(count: float) -> None:
    if count > MAX_VALUES:
        raise ValueError(f"there are more than {MAX_VALUES:,} values: give it a greater step")


def _evenly(low: float, high: float, points: int, log: bool) -> list[float]:
    """Different, evenly spaced values from the low to the high end, both exact."""
    shares = [index / (points - 1) for index in range(1, points - 1)]
    between = [low ** (1 - s) * high**s if log else low + (high - low) * s for s in shares]
    inside = [min(max(value, low), high) for value in between]  # rounding may pass the ends
    return list(dict.fromkeys([low, *inside, high]))


def _decimal(number: float) -> Decimal:
    """The number as it is written."""
    return Decimal(str(number))


def _kind(value: Any) -> str | None:
    """The tag of a distribution: by its key in a file, by its class in code."""
    kinds = {"float": FloatRange, "int": IntRange, "choice": Choice}
    for key, kind in kinds.items():
        if isinstance(value, kind) or (isinstance(value, dict) and key in value):
            return f"{key} distribution"  # with a space: no key of a file looks like that
    return None


AnyDistribution = Annotated[
    Annotated[FloatRange, Tag("float distribution")]
    | Annotated[IntRange, Tag("int distribution")]
    | Annotated[Choice, Tag("choice distribution")],
    Discriminator(
        _kind,
        custom_error_type="distribution",
        custom_error_message="expected {float: [low, high]}, {int: [low, high]} or {choice: […]}",
    ),
]
