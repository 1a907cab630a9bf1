"""Euler's method."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.sampling.integration import Field, Interval, Memory, TimeSolver, randn_like


class EulerConfig(TimeSolver):
    """Euler's method, one evaluation per step; a share of it may be stochastic."""

    paper: ClassVar[str] = "section 2.2, (7)(8); appendix C.5"

    name: Literal["euler"]
    stochastic: float = Key(
        0.0,
        ge=0,
        le=1,
        description="λ of (21): 0 for the probability flow (8), 1 for the reverse diffusion (7), which "
        "doubles the drift and adds noise on every step but the last; 0 for a flow over time.",
    )

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """x += (1 + λ) field(x, τ) Δτ + √(2 λ τ |Δτ|) ε."""
        share = 0.0 if interval.is_last else self.stochastic
        moved = x + ((1 + share) * interval.length) * field(x, interval.before)
        if share:
            amplitude = math.sqrt(2 * share * interval.before)
            moved = moved + (amplitude * math.sqrt(abs(interval.length))) * randn_like(x, rng)
        return moved, ()

    def check_over_time(self) -> None:
        """Noise belongs to noise levels."""
        if self.stochastic:
            raise ValueError("solver.stochastic is for noise levels: set it to 0 for a flow over time")
