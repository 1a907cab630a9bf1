"""Noise levels between σ_max and σ_min, as grids for sampling and as a distribution for training."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gpm_tune.config import MAX_MAGNITUDE, MAX_SAMPLING_STEPS, MIN_MAGNITUDE, Config

TOLD_APART = 2**-22  # relative distance of two numbers that float32 certainly tells apart


class NoiseRange(Config):
    """σ(u) = (σ_max^{1/ρ} + u (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ for u in [0, 1]."""

    paper: ClassVar[str] = "appendix D.2, (28)"

    sigma_min: float = Field(0.002, ge=MIN_MAGNITUDE, description="Smallest noise level.")
    sigma_max: float = Field(40.0, gt=0, le=MAX_MAGNITUDE, description="Largest noise level.")
    rho: float = Field(7.0, gt=0, le=MAX_MAGNITUDE, description="ρ: the larger, the denser near sigma_min.")

    @model_validator(mode="after")
    def _refuse_levels_that_are_too_close(self) -> NoiseRange:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min ({self.sigma_min:.9g}) must be below sigma_max ({self.sigma_max:.9g})"
            )
        # Relative to their size, the levels of a grid are closest at sigma_max.
        u = torch.tensor(
            1 / (MAX_SAMPLING_STEPS - 1), dtype=torch.float64, device="cpu"
        )  # whatever the default is
        if self.at(u) > (1 - TOLD_APART) * self.sigma_max:
            raise ValueError(
                f"sigma_min ({self.sigma_min:.9g}), sigma_max ({self.sigma_max:.9g}) and rho "
                f"({self.rho:.9g}) give noise levels too close to each other for a grid of "
                f"{MAX_SAMPLING_STEPS:,} steps: choose a wider range, or a larger rho"
            )
        return self

    def at(self, u: Tensor) -> Tensor:
        """Noise levels from exactly σ_max at u = 0 to exactly σ_min at u = 1."""
        # Relative to sigma_max, no power overflows and no difference loses its digits.
        lowest = (self.sigma_min / self.sigma_max) ** (1 / self.rho)
        v = u.double()
        levels = self.sigma_max * (1 - v + v * lowest) ** self.rho
        return torch.where(v < 1, levels, self.sigma_min).clamp(self.sigma_min, self.sigma_max).to(u.dtype)

    def grid(self, steps: int) -> list[float]:
        """σ_0 = σ_max, …, σ_{N-1} = σ_min, and σ_N = 0, after which nothing is left to be removed.

        Strictly decreasing, in float32 too, for any N up to MAX_SAMPLING_STEPS.
        """
        u = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
        levels: list[float] = self.at(u).tolist()
        return [*levels, 0.0]


def uniform_grid(steps: int) -> list[float]:
    """t_i = i/N for i = 0, …, N."""
    return [i / steps for i in range(steps + 1)]
