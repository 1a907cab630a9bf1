"""Heun's method."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.config import MAX_MAGNITUDE
from gpm_tune.sampling.integration import Field, Interval, Memory, TimeSolver, randn_like


def heun_step(field: Field, x: Tensor, before: float, interval: Interval) -> Tensor:
    """From τ = `before` to the interval's end: one evaluation where the field is unknown there, else two."""
    length = interval.after - before
    slope = field(x, before)
    moved = x + length * slope
    if not interval.after_known:
        return moved
    return x + length * (slope + field(moved, interval.after)) / 2


class HeunConfig(TimeSolver):
    """Heun's method with churn (Karras et al. 2022): two evaluations per step, one on a last one to σ = 0."""

    paper: ClassVar[str] = "appendix C.5"

    name: Literal["heun"]
    s_churn: float = Key(
        0.0,
        ge=0,
        description="Noise added over all steps; 0 for a deterministic path, as for a flow over time.",
    )
    s_min: float = Key(0.0, ge=0, description="Lowest noise level at which churn adds noise.")
    s_max: float | None = Key(
        None, gt=0, description="Highest noise level at which churn adds noise; null for all of them."
    )
    s_noise: float = Key(1.0, gt=0, le=MAX_MAGNITUDE, description="Standard deviation of the added noise.")

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """Go back to a somewhat higher noise level, then along the mean of the slopes at both ends."""
        x, before = self._churn(x, interval, rng)
        return heun_step(field, x, before, interval), ()

    def _churn(self, x: Tensor, interval: Interval, rng: torch.Generator) -> tuple[Tensor, float]:
        sigma = interval.before
        highest = math.inf if self.s_max is None else self.s_max
        if self.s_churn == 0 or not self.s_min <= sigma <= highest:
            return x, sigma
        higher = sigma * (1 + min(self.s_churn / interval.grid.steps, math.sqrt(2) - 1))
        noise = self.s_noise * randn_like(x, rng)
        return x + math.sqrt(higher**2 - sigma**2) * noise, higher

    def check_over_time(self) -> None:
        """Noise belongs to noise levels."""
        if self.s_churn:
            raise ValueError("solver.s_churn is for noise levels: set it to 0 for a flow over time")
