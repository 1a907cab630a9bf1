"""Annealed Langevin dynamics."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.sampling.integration import Field, Interval, Memory, Solver, randn_like


class LangevinConfig(Solver):
    """Annealed Langevin dynamics of NCSN: some steps at every noise level of the grid but its end."""

    paper: ClassVar[str] = "section 2.2, (4)(6)"

    name: Literal["langevin"]
    corrections: int = Key(
        3, ge=1, le=1000, description="Langevin steps, of one evaluation each, per noise level."
    )
    step_size: float = Key(0.1, gt=0, lt=2, description="Step size dt of (4), in units of σ².")

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """x += dt σ² ∇log p_σ(x) + √(2 dt) σ ε, at the noise level where the step begins."""
        sigma = interval.before
        for _ in range(self.corrections):
            drift = -self.step_size * sigma * field(x, sigma)
            x = x + drift + math.sqrt(2 * self.step_size) * sigma * randn_like(x, rng)
        return x, ()
