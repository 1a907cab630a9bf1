"""Noise levels between σ_max and σ_min, as grids for sampling and as a distribution for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field as Key
from pydantic import field_validator, model_validator
from torch import Tensor

from gpm_tune.config import MAX_MAGNITUDE, MAX_SAMPLING_STEPS, MIN_MAGNITUDE, Config
from gpm_tune.sampling.integration import Grid

TOLD_APART = 2**-22  # relative distance of two numbers that float32 certainly tells apart


class NoiseRange(Config):
    """σ(u) = (σ_max^{1/ρ} + u (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ for u in [0, 1]."""

    paper: ClassVar[str] = "appendix D.2, (28)"

    sigma_min: float = Key(0.002, ge=MIN_MAGNITUDE, description="Smallest noise level.")
    sigma_max: float = Key(40.0, gt=0, le=MAX_MAGNITUDE, description="Largest noise level.")
    rho: float = Key(7.0, gt=0, le=MAX_MAGNITUDE, description="ρ: the larger, the denser near sigma_min.")

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


class NoiseGrid(Config, ABC):
    """How the noise levels of a grid are chosen; members add `name`."""

    is_learned: ClassVar[bool] = False

    name: str
    end: Literal["zero", "sigma_min"] = Key(
        "zero",
        description="Where the last step ends: at no noise, from sigma_min; or at sigma_min, which spares a "
        "multistep solver a step that is Euler's.",
    )

    @abstractmethod
    def at(self, u: Tensor, noise: NoiseRange) -> Tensor:
        """Decreasing levels at u in [0, 1], the last of them σ_min."""

    def grid(self, steps: int, noise: NoiseRange) -> Grid:
        """N steps from the highest level to the end."""
        count = steps if self.end == "zero" else steps + 1
        levels = self.at(torch.linspace(0, 1, count, dtype=torch.float64, device="cpu"), noise).tolist()
        return Grid((*levels, 0.0)) if self.end == "zero" else Grid(tuple(levels), end_known=True)


class RhoGrid(NoiseGrid):
    """The levels of Karras et al. 2022: evenly spaced ρ-th roots."""

    paper: ClassVar[str] = "appendix D.2, (28)"

    name: Literal["rho"]

    def at(self, u: Tensor, noise: NoiseRange) -> Tensor:
        """(28)."""
        return noise.at(u)


class LogSNRGrid(NoiseGrid):
    """Evenly spaced in log-SNR: each level is the same fraction of the one before."""

    name: Literal["log_snr"]

    def at(self, u: Tensor, noise: NoiseRange) -> Tensor:
        """σ_max (σ_min/σ_max)^u."""
        return noise.sigma_max * (noise.sigma_min / noise.sigma_max) ** u


class SigmaGrid(NoiseGrid):
    """Evenly spaced in σ, which is the time of EDM's path."""

    name: Literal["sigma"]

    def at(self, u: Tensor, noise: NoiseRange) -> Tensor:
        """σ_max + u (σ_min - σ_max)."""
        return torch.lerp(torch.full_like(u, noise.sigma_max), torch.full_like(u, noise.sigma_min), u)


class ListedGrid(NoiseGrid):
    """Listed levels, in place of `sampling_noise`; for other numbers of steps log-linearly between them."""

    name: Literal["listed"]
    levels: tuple[Annotated[float, Key(ge=MIN_MAGNITUDE, le=MAX_MAGNITUDE)], ...] = Key(
        min_length=2, description="Decreasing noise levels; with `end: zero` a step to 0 follows."
    )

    @field_validator("levels")
    @classmethod
    def _refuse_levels_out_of_order(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        for before, after in pairwise(levels):
            if after > (1 - TOLD_APART) * before:
                raise ValueError(f"levels must decrease; {after:.9g} follows {before:.9g}")
        return levels

    def at(self, u: Tensor, noise: NoiseRange) -> Tensor:
        """As Sabour et al. 2024 (arXiv 2404.14507) interpolate theirs."""
        positions = np.linspace(0, 1, len(self.levels))
        return torch.from_numpy(np.exp(np.interp(u.numpy(), positions, np.log(self.levels))))


class LearnedGrid(NoiseGrid):
    """Found for the trained weights, and the solver, by dynamic programming over a fine path.

    After Chen et al. 2024 (arXiv 2405.11326), with the errors of the solver's own steps in place of Euler's.
    Grids of 48 steps and more are evenly spaced in log-SNR, as all are where that ends nearer to the path.
    """

    is_learned: ClassVar[bool] = True

    name: Literal["learned"]

    def at(self, u: Tensor, noise: NoiseRange) -> Tensor:
        """The levels of the fine path: evenly spaced in log-SNR."""
        return LogSNRGrid(name="log_snr").at(u, noise)


NoiseGridConfig = Annotated[
    RhoGrid | LogSNRGrid | SigmaGrid | ListedGrid | LearnedGrid, Key(discriminator="name")
]


def uniform_grid(steps: int) -> Grid:
    """t_i = i/N for i = 0, …, N; what happens at t = 1 is not known."""
    return Grid(tuple(i / steps for i in range(steps + 1)))
