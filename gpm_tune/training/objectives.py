"""What may be optimised or bounded: metrics, metrics along the curve of quality against NFE, and costs."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field

from gpm_tune.config import Config, nearest

Mode = Literal["min", "max"]
WORDS = {"min": "smaller", "max": "greater"}
COSTS: dict[str, Mode] = {
    "nfe": "min",
    "parameters": "min",
    "seconds": "min",
    "steps_per_second": "max",
    "system/gpu_memory": "min",
}
TIMES = {"seconds", "steps_per_second"}  # that only equal machines make comparable
AT_NFE = re.compile(r"(?P<metric>.+)/nfe_(?P<nfe>[1-9][0-9]{0,9})")
UP_TO_NFE = re.compile(r"(?P<metric>.+)/nfe_up_to_(?P<nfe>[1-9][0-9]{0,9})")
HYPERVOLUME = re.compile(r"(?P<metric>.+)/hypervolume")


class Objective(Config):
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


class Constraint(Config):
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


class Reference(Config):
    """The corner from which a hypervolume is measured: worse than all that is of interest."""

    nfe: int = Field(ge=1, description="The highest NFE that counts.")
    value: float = Field(description="The worst value of the metric that counts.")


def mode_of(
    name: str, metrics: Mapping[str, Mode], nfe: Collection[int], reference: Reference | None
) -> Mode:
    """The mode, min or max, of what an objective names.

    metrics: those of the evaluation. nfe: at which they are reported besides the full NFE.
    Raises ValueError where evaluations do not tell it, with what would be valid.
    """
    curve = UP_TO_NFE.fullmatch(name) or AT_NFE.fullmatch(name) or HYPERVOLUME.fullmatch(name)
    if curve is None:
        known = {**metrics, **COSTS}
        if name not in known:
            raise ValueError(f"unknown metric '{name}'; {nearest(name, known)}")
        return known[name]
    metric = curve["metric"]
    if metric not in metrics:
        raise ValueError(f"unknown metric '{metric}' in '{name}'; {nearest(metric, metrics)}")
    if AT_NFE.fullmatch(name) and int(curve["nfe"]) not in nfe:
        raise ValueError(f"{name} is not measured: add {curve['nfe']} to evaluation.nfe {list(nfe)}")
    if HYPERVOLUME.fullmatch(name):
        if reference is None:
            raise ValueError(f"{name} needs evaluation.reference: {{nfe: N, value: V}}, its worst corner")
        return "max"
    return metrics[metric]


def derive(
    name: str, evaluated: Mapping[str, float], metrics: Mapping[str, Mode], reference: Reference | None
) -> float | None:
    """What an objective names, from what an evaluation measured; None where it cannot be known."""
    if name in evaluated:
        return evaluated[name]
    if match := UP_TO_NFE.fullmatch(name):
        values = [v for nfe, v in curve_of(match["metric"], evaluated) if nfe <= int(match["nfe"])]
        best = min if metrics[match["metric"]] == "min" else max
        return best(values, default=None)
    if (match := HYPERVOLUME.fullmatch(name)) and reference is not None:
        return hypervolume(curve_of(match["metric"], evaluated), metrics[match["metric"]], reference)
    return None


def curve_of(metric: str, evaluated: Mapping[str, float]) -> list[tuple[int, float]]:
    """(NFE, value) of a metric at every NFE that an evaluation measured, in the order of NFE."""
    matches = [(AT_NFE.fullmatch(name), value) for name, value in evaluated.items()]
    return sorted((int(m["nfe"]), v) for m, v in matches if m and m["metric"] == metric)


def hypervolume(curve: list[tuple[int, float]], better: Mode, reference: Reference) -> float:
    """The area of (log2 NFE, value) between a curve and a reference corner that it is better than.

    Grows when any point of the curve gets cheaper or better; a point beyond the corner adds nothing.
    """
    sign = 1.0 if better == "min" else -1.0
    area, height = 0.0, 0.0
    points = [(nfe, sign * (reference.value - value)) for nfe, value in curve if nfe <= reference.nfe]
    ends = [nfe for nfe, _ in points[1:]] + [reference.nfe]
    for (nfe, gain), end in zip(points, ends, strict=False):
        height = max(height, gain)
        area += height * math.log2(end / nfe)
    return area


def metric_label(metric: str, features: str | None) -> str:
    """A metric's name as it is shown: FID never without its feature network."""
    return f"FID ({features})" if metric == "fid" else metric


def shown(value: float, digits: int = 4) -> str:
    """A measured value in a few digits, without an exponent where it can be read without."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"
