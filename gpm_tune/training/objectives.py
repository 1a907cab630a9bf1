"""What may be optimised or bounded: metrics, metrics along the curve of quality against NFE, and costs."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from gpm_tune.config import Config, nearest
from gpm_tune.errors import UserError
from gpm_tune.metrics import MODES, Mode

WORDS = {"min": "smaller", "max": "greater"}
COSTS: dict[str, Mode] = {
    "nfe": "min",
    "parameters": "min",
    "seconds": "min",
    "steps_per_second": "max",
    "system/gpu_memory": "min",
}
TIMES = {"seconds", "steps_per_second"}  # that only equal machines make comparable
_NAME = re.compile(
    r"(?P<metric>.+?)(/(?P<along>nfe|nfe_up_to)_(?P<nfe>[1-9][0-9]{0,9})|/(?P<whole>hypervolume))?"
)


class Reference(Config):
    """The corner from which a hypervolume is measured: worse than all that is of interest."""

    nfe: int = Field(ge=1, description="The highest NFE that counts.")
    value: float = Field(description="The worst value of the metric that counts.")


class Measured(BaseModel):
    """What an evaluation measured."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    curve: dict[Annotated[int, Field(ge=1, strict=False)], dict[str, float]] = Field(min_length=1)
    """NFE -> metric -> value."""
    scalars: dict[str, float]
    """Losses and costs, what the machine did, and METRIC/hypervolume where a corner is given."""

    @property
    def nfe(self) -> int:
        """The full NFE."""
        return max(self.curve)

    @property
    def metrics(self) -> dict[str, float]:
        """Those at the full NFE."""
        return self.curve[self.nfe]

    def along_nfe(self, metric: str) -> dict[int, float]:
        """NFE -> value of a metric, in the order of NFE."""
        return {nfe: values[metric] for nfe, values in sorted(self.curve.items()) if metric in values}

    def as_text(self) -> dict[str, float]:
        """All of it by name, as MLflow and people have it: METRIC at the full NFE, METRIC/nfe_N at each."""
        curve = {f"{name}/nfe_{nfe}": v for nfe, values in self.curve.items() for name, v in values.items()}
        return curve | self.metrics | self.scalars | {"nfe": float(self.nfe)}


class Quantity(NamedTuple):
    """What a name says that is optimised or bounded: a metric, somewhere along its curve, or a cost."""

    metric: str
    along: str | None  # "nfe", "nfe_up_to", "hypervolume", or None for the full NFE
    nfe: int

    @classmethod
    def parse(cls, name: str) -> Quantity:
        """Of METRIC, METRIC/nfe_N, METRIC/nfe_up_to_N or METRIC/hypervolume; of a cost."""
        match = _NAME.fullmatch(name)
        if match is None:  # it has a line break
            return cls(name, None, 0)
        return cls(match["metric"], match["along"] or match["whole"], int(match["nfe"] or 0))


class Named(Config):
    """What is optimised or bounded, by its name."""

    metric: str

    @cached_property
    def quantity(self) -> Quantity:
        """What the name says."""
        return Quantity.parse(self.metric)

    def value_of(self, measured: Measured) -> float:
        """Its value at an evaluation. Raises UserError where that has none."""
        metric, along, nfe = self.quantity
        curve = measured.along_nfe(metric)
        if along == "nfe_up_to":
            best = min if MODES[metric] == "min" else max
            value = best((v for n, v in curve.items() if n <= nfe), default=None)
        elif along == "nfe":
            value = curve.get(nfe)
        else:
            value = (measured.scalars | measured.metrics | {"nfe": measured.nfe}).get(self.metric)
        if value is None:
            raise UserError(f"{self.metric} is not measured: the model's full NFE is {measured.nfe}")
        return value

    def mode_in(self, metrics: Mapping[str, Mode], nfe: Collection[int], reference: Reference | None) -> Mode:
        """The mode of what is named.

        metrics: those of the evaluation. nfe: at which they are reported besides the full NFE.
        Raises ValueError where evaluations do not tell it, with what would be valid.
        """
        metric, along, at = self.quantity
        known = metrics if along else {**metrics, **COSTS}
        if metric not in known:
            where = f" in '{self.metric}'" if along else ""
            raise ValueError(f"unknown metric '{metric}'{where}; {nearest(metric, known)}")
        if along == "nfe" and at not in nfe:
            raise ValueError(f"{self.metric} is not measured: add {at} to evaluation.nfe {list(nfe)}")
        if along != "hypervolume":
            return known[metric]
        if reference is None:
            raise ValueError(
                f"{self.metric} needs evaluation.reference: {{nfe: N, value: V}}, its worst corner"
            )
        return "max"


class Objective(Named):
    """A metric and its mode: which values are better."""

    metric: str = Field(
        description="What is optimised: a metric of the evaluation, at the full NFE; METRIC/nfe_N, at "
        "another NFE; METRIC/nfe_up_to_N, the best over the NFE up to N; METRIC/hypervolume, of its whole "
        "curve against NFE; nfe, parameters, seconds, steps_per_second or system/gpu_memory."
    )
    mode: Mode = Field("min", description="Which values are better: `min` for FID, NFE and costs.")

    def better(self, value: float, than: float) -> bool:
        """Whether a value is strictly better than another."""
        return value < than if self.mode == "min" else value > than

    @property
    def worst(self) -> float:
        """What every finite value is better than."""
        return math.inf if self.mode == "min" else -math.inf


class Constraint(Named):
    """A bound on a metric or a cost: a trial beyond it is not a result."""

    metric: str = Field(description="What is bounded: any metric or cost that an objective may name.")
    max: float | None = Field(None, description="Highest value allowed.")
    min: float | None = Field(None, description="Lowest value allowed.")

    def violation(self, value: float) -> float:
        """By how much a value is beyond the bounds; at most 0 for one that is allowed."""
        above = value - self.max if self.max is not None else -math.inf
        below = self.min - value if self.min is not None else -math.inf
        return max(above, below)

    def __str__(self) -> str:
        bounds = [
            f"{sign} {bound:g}" for sign, bound in (("≥", self.min), ("≤", self.max)) if bound is not None
        ]
        return f"{self.metric} {' and '.join(bounds)}"


def hypervolume(curve: Mapping[int, float], better: Mode, reference: Reference) -> float:
    """The area of (log2 NFE, value) between a curve and a reference corner that it is better than.

    curve: NFE -> value, in the order of NFE. Grows when any point of the curve gets cheaper or better; a
    point beyond the corner adds nothing.
    """
    sign = 1.0 if better == "min" else -1.0
    area, height = 0.0, 0.0
    points = [(nfe, sign * (reference.value - value)) for nfe, value in curve.items() if nfe <= reference.nfe]
    ends = [nfe for nfe, _ in points[1:]] + [reference.nfe]
    for (nfe, gain), end in zip(points, ends, strict=False):
        height = max(height, gain)
        area += height * math.log2(end / nfe)
    return area


def metric_label(metric: str, features: str | None) -> str:
    """A metric's name as it is shown: one of features never without their network."""
    if features is None or Quantity.parse(metric).metric not in MODES:
        return metric
    return f"{'FID' if metric == 'fid' else metric} ({features})"


def shown(value: float, digits: int = 4) -> str:
    """A measured value in a few digits, without an exponent where it can be read without."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"
