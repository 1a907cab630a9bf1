"""Adams and Bashforth's method for uneven steps: DEIS in σ."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.sampling.integration import Field, Interval, Memory, TimeSolver
from gpm_tune.sampling.polynomials import integral_weights


class ABConfig(TimeSolver):
    """Adams and Bashforth's method; along noise levels tAB-DEIS (Zhang and Chen 2023, arXiv 2204.13902)."""

    name: Literal["ab"]
    order: int = Key(3, ge=1, le=4, description="How many slopes a step knows; the first steps know fewer.")

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """x += ∫ p dτ, of the polynomial p through the latest slopes; one evaluation."""
        slopes = (field(x, interval.before), *memory)
        weights = integral_weights(interval.back(len(slopes)), interval.before, interval.after)
        moved = torch.stack([w * slope for w, slope in zip(weights, slopes, strict=True)]).sum(0)
        return x + moved, slopes[: self.order - 1]
