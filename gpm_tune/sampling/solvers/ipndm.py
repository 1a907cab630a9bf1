"""iPNDM: Adams and Bashforth's method with the coefficients of even steps."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.sampling.integration import Field, Interval, Memory, TimeSolver

COEFFICIENTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class IPNDMConfig(TimeSolver):
    """iPNDM (Zhang and Chen 2023, arXiv 2204.13902, (38)): one evaluation per step, and the slopes before."""

    name: Literal["ipndm"]
    order: int = Key(3, ge=1, le=4, description="How many slopes a step knows; the first steps know fewer.")

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """x += Σ_j c_j slope_j Δτ, with coefficients that are exact for even steps."""
        slopes = (field(x, interval.before), *memory)
        weighted = [c * slope for c, slope in zip(COEFFICIENTS[len(slopes) - 1], slopes, strict=True)]
        return x + interval.length * torch.stack(weighted).sum(0), slopes[: self.order - 1]
