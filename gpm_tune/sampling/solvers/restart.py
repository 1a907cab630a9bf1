"""Restart: Heun's method that goes over a range of noise levels several times."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field as Key
from pydantic import model_validator
from torch import Tensor

from gpm_tune.config import MAX_MAGNITUDE
from gpm_tune.sampling.integration import Field, Grid, Interval, Memory, Solver, randn_like
from gpm_tune.sampling.solvers.heun import heun_step

RHO = 7.0  # of the levels on the way down again


class RestartConfig(Solver):
    """Restart (Xu et al. 2023, arXiv 2306.14878): Heun's path, which goes back to a higher noise level."""

    name: Literal["restart"]
    restarts: int = Key(2, ge=0, le=1000, description="How often the range is gone over again.")
    steps: int = Key(3, ge=1, le=1000, description="Heun's steps down the range, of two evaluations each.")
    low: float = Key(
        0.1, gt=0, le=MAX_MAGNITUDE, description="Noise level below which particles go back, once reached."
    )
    high: float = Key(1.0, gt=0, le=MAX_MAGNITUDE, description="Noise level to which they go back.")

    @model_validator(mode="after")
    def _refuse_an_empty_range(self) -> RestartConfig:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """A step of Heun's; on arrival below `low`, noise is then added and removed, again and again."""
        x = heun_step(field, x, interval.before, interval)
        arrived = interval.after
        if not (0 < arrived <= self.low < interval.before):
            return x, ()
        roots = np.linspace(self.high ** (1 / RHO), arrived ** (1 / RHO), self.steps + 1)
        again = Grid(tuple((roots**RHO).tolist()), end_known=True)
        for _ in range(self.restarts):
            x = x + math.sqrt(self.high**2 - arrived**2) * randn_like(x, rng)
            for index in range(self.steps):
                x = heun_step(field, x, again.points[index], Interval(again, index))
        return x, ()
