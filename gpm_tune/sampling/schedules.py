"""Noise levels between σ_max and σ_min, as grids for sampling and as a distribution for training."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gpm_tune.config import GREATEST, Config


class NoiseRange(Config):
    """σ(u) = (σ_max^{1/ρ} + u (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ for u in [0, 1]."""

    paper: ClassVar[str] = "appendix D.2, (28)"

    sigma_min: float = Field(0.002, gt=0, description="Smallest noise level.")
    sigma_max: float = Field(40.0, gt=0, le=GREATEST, description="Largest noise level.")
    rho: float = Field(7.0, gt=0, description="ρ: the larger, the denser near sigma_min.")

    @model_validator(mode="after")
    def _refuse_an_empty_range(self) -> NoiseRange:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min:g}) must be below sigma_max ({self.sigma_max:g})")
        try:
            high, low = self._roots
        except OverflowError:
            high, low = math.inf, 0.0
        if not low < high < math.inf:
            raise ValueError(f"rho ({self.rho:g}) is too far from 1 to tell noise levels apart")
        return self

    @property
    def _roots(self) -> tuple[float, float]:
        """σ_max^{1/ρ} and σ_min^{1/ρ}."""
        return self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)

    def at(self, u: Tensor) -> Tensor:
        """Noise levels from σ_max at u = 0 to σ_min at u = 1."""
        high, low = self._roots
        levels: Tensor = (high + u * (low - high)) ** self.rho
        return levels

    def grid(self, steps: int) -> list[float]:
        """σ_0 = σ_max, …, σ_{N-1} = σ_min, and σ_N = 0, after which nothing is left to be removed."""
        levels: list[float] = self.at(torch.linspace(0, 1, steps, dtype=torch.float64)).tolist()
        return [*levels, 0.0]


def uniform_grid(steps: int) -> list[float]:
    """t_i = i/N for i = 0, …, N."""
    return [i / steps for i in range(steps + 1)]
