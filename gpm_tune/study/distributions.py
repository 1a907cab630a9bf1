"""Distributions: where the value of one key of the experiment comes from, in the search space."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from gpm_tune.config import Config

if TYPE_CHECKING:
    import optuna

Scalar = str | int | float | bool | None


class Distribution(Config):
    """Where the value of one key of the experiment comes from."""

    when: dict[str, Scalar | list[Scalar]] = Field(
        {},
        description="Conditions: path -> the value, or values, under which this one is searched.",
    )

    def encode(self, value: Any) -> Any:
        """A value as Optuna's parameter."""
        return value


class FloatRange(Distribution):
    """A real number between two bounds."""

    bounds: tuple[float, float] = Field(alias="float", description="Lowest and highest value.")
    log: bool = Field(False, description="Search on a logarithmic scale.")
    step: float | None = Field(None, gt=0, description="Only low, low + step, … are tried.")

    @model_validator(mode="after")
    def _check(self) -> FloatRange:
        _check_range(*self.bounds, self.log, self.step)
        return self

    @property
    def probes(self) -> list[Any]:
        """Values that must all be valid in the experiment."""
        return list(self.bounds)

    def suggest(self, trial: optuna.Trial, path: str) -> float:
        """Draw a value."""
        return trial.suggest_float(path, *self.bounds, log=self.log, step=self.step)

    def contains(self, value: Any) -> bool:
        """Whether a start point may have this value."""
        low, high = self.bounds
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return False
        offset = (value - low) / self.step if self.step else 0.0
        return bool(abs(offset - round(offset)) < 1e-8)


class IntRange(Distribution):
    """A whole number between two bounds."""

    bounds: tuple[int, int] = Field(alias="int", description="Lowest and highest value.")
    log: bool = Field(False, description="Search on a logarithmic scale.")
    step: int = Field(1, ge=1, description="Only low, low + step, … are tried.")

    @model_validator(mode="after")
    def _check(self) -> IntRange:
        _check_range(*self.bounds, self.log, None if self.step == 1 else self.step)
        return self

    @property
    def probes(self) -> list[Any]:
        """Values that must all be valid in the experiment."""
        return list(self.bounds)

    def suggest(self, trial: optuna.Trial, path: str) -> int:
        """Draw a value."""
        return trial.suggest_int(path, *self.bounds, log=self.log, step=self.step)

    def contains(self, value: Any) -> bool:
        """Whether a start point may have this value."""
        low, high = self.bounds
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and low <= value <= high and (value - low) % self.step == 0


class Choice(Distribution):
    """One of several values, of any type that the key takes."""

    choice: list[Any] = Field(min_length=1, description="The values.")

    @property
    def probes(self) -> list[Any]:
        """Values that must all be valid in the experiment."""
        return self.choice

    def suggest(self, trial: optuna.Trial, path: str) -> Any:
        """Draw a value."""
        labels = [self.encode(value) for value in self.choice]
        return self.choice[labels.index(trial.suggest_categorical(path, labels))]

    def contains(self, value: Any) -> bool:
        """Whether a start point may have this value."""
        return value in self.choice

    def encode(self, value: Any) -> Any:
        """Optuna's categories are scalars: lists and mappings become JSON."""
        return json.dumps(value) if isinstance(value, list | dict) else value


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low > high:
        raise ValueError(f"the low end {low} is above the high end {high}")
    if log and low <= 0:
        raise ValueError(f"log: true needs a low end above 0, found {low}")
    if log and step is not None:
        raise ValueError("log and step exclude each other")


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
