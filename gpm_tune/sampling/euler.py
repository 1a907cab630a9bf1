"""Euler's method, with or without Brownian noise, for whole paths and for random stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]  # (B, *shape), τ (B,) -> (B, *shape)


def randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise in the shape of x."""
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=rng)


@dataclass(frozen=True)
class Euler:
    """x += drift · field(x, τ) Δτ + amplitude(τ) √|Δτ| ε; the last step is x += field(x, τ) Δτ."""

    name: ClassVar[str] = "euler"
    drift: float = 1.0
    amplitude: Callable[[float], float] = lambda _tau: 0.0

    def path(self, field: Field, x: Tensor, grid: Sequence[float], rng: torch.Generator) -> Iterator[Tensor]:
        """The particles after each step of the grid. x: (B, *shape), grid: N+1 values of τ."""
        for i, (before, after) in enumerate(pairwise(grid), start=2):
            x = self._step(field, x, before, after, rng, last=i == len(grid))
            yield x

    def until(
        self, field: Field, x: Tensor, grid: Sequence[float], stops: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Every particle at its own grid index: row b of the result is x_b after stops[b] of N steps.

        Equal to picking from the full paths, at the cost of the steps that are needed only: the batch
        is sorted by stop, latest first, and shrinks as particles arrive (Algorithm 3 draws the stops
        independently of the paths, so that they may be known beforehand).

        stops: (B,) integers in [0, N).
        """
        order = torch.argsort(stops, descending=True, stable=True)
        x = x[order]
        # One transfer tells how many particles are still on their way at each step.
        numbers = torch.arange(len(grid) - 1, device=stops.device)
        travellers = (stops[None, :] > numbers[:, None]).sum(1).tolist()
        arrived: list[Tensor] = []
        for count, (before, after) in zip(travellers, pairwise(grid), strict=True):
            if count < len(x):
                arrived.append(x[count:])
                x = x[:count]
            if count == 0:
                break
            x = self._step(field, x, before, after, rng, last=False)
        result = torch.cat([x, *reversed(arrived)])
        return torch.empty_like(result).index_copy_(0, order.to(x.device), result)

    def steps(self, nfe: int) -> int:
        """The longest grid that so many evaluations allow."""
        return nfe

    def _step(
        self, field: Field, x: Tensor, before: float, after: float, rng: torch.Generator, *, last: bool
    ) -> Tensor:
        drift = 1.0 if last else self.drift
        amplitude = 0.0 if last else self.amplitude(before)
        step = after - before
        moved = x + (drift * step) * field(x, x.new_full((len(x),), before))
        if amplitude == 0.0:
            return moved
        return moved + (amplitude * math.sqrt(abs(step))) * randn_like(x, rng)
