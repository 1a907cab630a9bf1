"""Solvers of flows over noise levels: the field is dx/dσ = -σ ∇log p_σ (8), the grid runs down to 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.config import MAX_MAGNITUDE, Config
from gpm_tune.sampling.euler import Euler, Field, randn_like


class Solver(Protocol):
    """Carries particles along a grid."""

    @property
    def name(self) -> str:
        """What chooses it in a study file."""

    def path(self, field: Field, x: Tensor, grid: Sequence[float], rng: torch.Generator) -> Iterator[Tensor]:
        """The particles after each step of the grid."""

    def until(
        self, field: Field, x: Tensor, grid: Sequence[float], stops: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Every particle after its own number of steps: row b is x_b after stops[b] (B,) of them."""

    def steps(self, nfe: int) -> int:
        """The longest grid that so many evaluations of the field allow; 0 if none."""


class Paths(ABC):
    """A solver that finds particles at their own stops on whole paths."""

    @abstractmethod
    def path(self, field: Field, x: Tensor, grid: Sequence[float], rng: torch.Generator) -> Iterator[Tensor]:
        """The particles after each step of the grid."""

    def until(
        self, field: Field, x: Tensor, grid: Sequence[float], stops: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Every particle after its own number of steps; the path is followed up to the last stop."""
        result, path = x, self.path(field, x, grid, rng)
        for step in range(1, int(stops.max()) + 1):
            stays = (stops < step).to(x.device).view(-1, *[1] * (x.dim() - 1))
            result = torch.where(stays, result, next(path))
        return result


class EulerConfig(Config):
    """Euler's method, one evaluation per step; a share of it may be stochastic."""

    paper: ClassVar[str] = "section 2.2, (7)(8); appendix C.5"

    name: Literal["euler"]
    stochastic: float = Key(
        0.0,
        ge=0,
        le=1,
        description="λ of (21): 0 for the probability flow (8), 1 for the reverse diffusion (7), which "
        "doubles the drift and adds noise on every step but the last.",
    )

    def path(self, field: Field, x: Tensor, grid: Sequence[float], rng: torch.Generator) -> Iterator[Tensor]:
        """The particles after each step of the grid."""
        return self._euler.path(field, x, grid, rng)

    def until(
        self, field: Field, x: Tensor, grid: Sequence[float], stops: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Every particle after its own number of steps."""
        return self._euler.until(field, x, grid, stops, rng)

    @property
    def _euler(self) -> Euler:
        share = self.stochastic
        return Euler(drift=1 + share, amplitude=lambda sigma: math.sqrt(2 * share * sigma))

    def steps(self, nfe: int) -> int:
        """One evaluation per step."""
        return nfe


class HeunConfig(Config, Paths):
    """Heun's method with churn (Karras et al. 2022): two evaluations per step, one on the last."""

    paper: ClassVar[str] = "appendix C.5"

    name: Literal["heun"]
    s_churn: float = Key(0.0, ge=0, description="Noise added over all steps; 0 for a deterministic path.")
    s_min: float = Key(0.0, ge=0, description="Lowest noise level at which churn adds noise.")
    s_max: float | None = Key(
        None, gt=0, description="Highest noise level at which churn adds noise; null for all of them."
    )
    s_noise: float = Key(1.0, gt=0, le=MAX_MAGNITUDE, description="Standard deviation of the added noise.")

    def path(self, field: Field, x: Tensor, grid: Sequence[float], rng: torch.Generator) -> Iterator[Tensor]:
        """The particles after each step of the grid."""
        for i, (sigma, after) in enumerate(pairwise(grid), start=2):
            x, before = self._churn(x, sigma, len(grid) - 1, rng)
            slope = field(x, x.new_full((len(x),), before))
            moved = x + (after - before) * slope
            if i < len(grid):  # a field need not be known where its grid ends, as scores are not at σ = 0
                corrected = field(moved, x.new_full((len(x),), after))
                moved = x + (after - before) * (slope + corrected) / 2
            x = moved
            yield x

    def steps(self, nfe: int) -> int:
        """2N - 1 evaluations make N steps."""
        return (nfe + 1) // 2

    def _churn(self, x: Tensor, sigma: float, steps: int, rng: torch.Generator) -> tuple[Tensor, float]:
        """Go back to a somewhat higher noise level."""
        highest = math.inf if self.s_max is None else self.s_max
        if self.s_churn == 0 or not self.s_min <= sigma <= highest:
            return x, sigma
        higher = sigma * (1 + min(self.s_churn / steps, math.sqrt(2) - 1))
        noise = self.s_noise * randn_like(x, rng)
        return x + math.sqrt(higher**2 - sigma**2) * noise, higher


class LangevinConfig(Config, Paths):
    """Annealed Langevin dynamics of NCSN: some steps at every noise level of the grid."""

    paper: ClassVar[str] = "section 2.2, (4)(6)"

    name: Literal["langevin"]
    corrections: int = Key(
        3, ge=1, le=1000, description="Langevin steps, of one evaluation each, per noise level."
    )
    step_size: float = Key(0.1, gt=0, lt=2, description="Step size dt of (4), in units of σ².")

    def path(self, field: Field, x: Tensor, grid: Sequence[float], rng: torch.Generator) -> Iterator[Tensor]:
        """The particles after each noise level but the last, 0, at which there is no score."""
        for sigma in grid[:-1]:
            for _ in range(self.corrections):
                drift = -self.step_size * sigma * field(x, x.new_full((len(x),), sigma))
                x = x + drift + math.sqrt(2 * self.step_size) * sigma * randn_like(x, rng)
            yield x

    def steps(self, nfe: int) -> int:
        """As many evaluations per noise level as there are corrections."""
        return nfe // self.corrections


SolverConfig = Annotated[EulerConfig | HeunConfig | LangevinConfig, Key(discriminator="name")]
