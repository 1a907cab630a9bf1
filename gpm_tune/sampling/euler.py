"""Euler's method on the uniform grid t_i = i/N of [0, 1], for whole paths and for random stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]  # (B, *shape), times (B,) -> (B, *shape)


def euler_path(field: Field, x: Tensor, steps: int) -> Iterator[Tensor]:
    """The particles after each of the steps x_{i+1} = x_i + field(x_i, i/N)/N, N in all."""
    for i in range(steps):
        x = x + field(x, x.new_full((len(x),), i / steps)) / steps
        yield x


def euler_until(field: Field, x: Tensor, stops: Tensor, steps: int) -> Tensor:
    """Every particle at its own grid index: row b of the result is x_b after stops[b] of N steps.

    Equal to picking from the full paths, at the cost of the steps that are needed only: the batch
    is sorted by stop, latest first, and shrinks as particles arrive (Algorithm 3 draws the stops
    independently of the paths, so that they may be known beforehand).

    stops: (B,) integers in [0, N).
    """
    order = torch.argsort(stops, descending=True, stable=True)
    x = x[order]
    # One transfer tells how many particles are still on their way at each step.
    travellers = (stops[None, :] > torch.arange(steps, device=stops.device)[:, None]).sum(1).tolist()
    arrived: list[Tensor] = []
    for i, count in enumerate(travellers):
        if count < len(x):
            arrived.append(x[count:])
            x = x[:count]
        if count == 0:
            break
        x = x + field(x, x.new_full((count,), i / steps)) / steps
    result = torch.cat([x, *reversed(arrived)])
    return torch.empty_like(result).index_copy_(0, order, result)
