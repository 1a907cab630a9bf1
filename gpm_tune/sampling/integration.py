"""The integrator: it carries particles along a grid, step by step, whatever the solver."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpm_tune.config import Config

Field = Callable[[Tensor, float], Tensor]  # (B, *shape), τ -> dx/dτ, (B, *shape)
Memory = tuple[Tensor, ...]  # what a solver keeps of earlier steps: a row, (B, ...), per particle


class Grid(NamedTuple):
    """The times, or noise levels, at which particles stop on the way, from the prior's to the data's."""

    points: tuple[float, ...]  # N + 1 of them for N steps
    end_known: bool = False  # whether the field can be asked at the last one

    @property
    def steps(self) -> int:
        """N."""
        return len(self.points) - 1


@dataclass(frozen=True)
class Interval:
    """Where a solver stands: at one of the steps of a grid."""

    grid: Grid
    index: int

    @property
    def before(self) -> float:
        """τ where the step begins."""
        return self.grid.points[self.index]

    @property
    def after(self) -> float:
        """τ where it ends."""
        return self.grid.points[self.index + 1]

    @property
    def length(self) -> float:
        """Δτ: negative along noise levels."""
        return self.after - self.before

    @property
    def is_last(self) -> bool:
        """Whether the grid ends with it."""
        return self.left == 1

    @property
    def left(self) -> int:
        """The steps that are left, this one included."""
        return self.grid.steps - self.index

    @property
    def after_known(self) -> bool:
        """Whether the field can be asked where the step ends, as a score cannot at σ = 0."""
        return self.grid.end_known or not self.is_last

    def back(self, count: int) -> tuple[float, ...]:
        """The last so many points of the grid that have been reached, latest first."""
        return self.grid.points[self.index :: -1][:count]


class Solver(Config, ABC):
    """One step of a method, as an experiment chooses it by `name`; members add that key.

    A solver for flows over time, too, asks the field at points of the grid only, and is a TimeSolver.
    """

    name: str

    @abstractmethod
    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """The particles (B, *shape) after a step of the grid, and what the next step is to remember.

        memory: what the step before has returned; empty on the first one.
        """


class TimeSolver(Solver):
    """A solver that needs no noise levels, and no points between those of the grid."""

    def check_over_time(self) -> None:
        """Raise ValueError where an option is for noise levels only."""


def path(
    solver: Solver, field: Field, x: Tensor, grid: Grid, rng: torch.Generator, diffusion: float = 0.0
) -> Iterator[Tensor]:
    """The particles (B, *shape) after each step of the grid.

    diffusion: variance, per unit of τ, of Brownian noise that is added on every step but the last.
    """
    memory: Memory = ()
    for index in range(grid.steps):
        x, memory = _advance(solver, field, x, Interval(grid, index), memory, rng, diffusion)
        yield x


def stopped(
    solver: Solver,
    field: Field,
    x: Tensor,
    grid: Grid,
    stops: Tensor,
    rng: torch.Generator,
    diffusion: float = 0.0,
) -> Tensor:
    """Every particle after its own number of steps: row b of the result is x_b after stops[b] of them.

    Equal to picking from full paths, at the cost of the steps that are needed only: the batch is sorted
    by stop, latest first, and shrinks as particles arrive (Algorithm 3 draws the stops independently of
    the paths, so that they may be known beforehand).

    stops: (B,) integers in [0, N).
    """
    order = torch.argsort(stops, descending=True, stable=True)
    x = x[order]
    memory: Memory = ()
    # One transfer tells how many particles are still on their way at each step.
    numbers = torch.arange(grid.steps, device=stops.device)
    travellers = (stops[None, :] > numbers[:, None]).sum(1).tolist()
    arrived: list[Tensor] = []
    for index, count in enumerate(travellers):
        if count < len(x):
            arrived.append(x[count:])
            x, memory = x[:count], tuple(kept[:count] for kept in memory)
        if count == 0:
            break
        x, memory = _advance(solver, field, x, Interval(grid, index), memory, rng, diffusion)
    result = torch.cat([x, *reversed(arrived)])
    return torch.empty_like(result).index_copy_(0, order.to(x.device), result)


def draws_noise(solver: Solver, grid: Grid) -> bool:
    """Whether the solver uses random numbers anywhere along the grid, found out on a path of one number."""
    rng = torch.Generator()
    before = rng.get_state()
    for _ in path(solver, lambda x, _: torch.zeros_like(x), torch.zeros(1, 1, device="cpu"), grid, rng):
        pass
    return not torch.equal(before, rng.get_state())


def _advance(
    solver: Solver,
    field: Field,
    x: Tensor,
    interval: Interval,
    memory: Memory,
    rng: torch.Generator,
    diffusion: float,
) -> tuple[Tensor, Memory]:
    x, memory = solver.step(field, x, interval, memory, rng)
    if diffusion and not interval.is_last:
        x = x + math.sqrt(diffusion * abs(interval.length)) * randn_like(x, rng)
    return x, memory


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise in the shape of x."""
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=rng)
