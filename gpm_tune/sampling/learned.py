"""Learned grids: dynamic programming over a fine path of the trained model."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpm_tune.sampling.integration import Field, Grid, Interval, Memory, Solver, path

STDS = (0.5, 2.0, 1e6)  # of data: σ_data, wider, and so wide that errors remain as they are
AT_ONCE = 8  # particles whose products are computed together: bounds the memory


class Route(NamedTuple):
    """Steps along some of the points: their indices, the errors' sum, and what the solver remembers."""

    stops: tuple[int, ...]
    error: float
    memory: Memory


class FinePath(NamedTuple):
    """The path of some particles (n, *shape) by way of many noise levels.

    grid: of K levels. gram: (2K, 2K) in double precision, the mean products, over particles, of their states
    and of the slopes dx/dσ at these; states first.
    """

    grid: Grid
    start: Tensor
    end: Tensor
    gram: Tensor

    @classmethod
    def of(cls, grid: Grid, states: Sequence[Tensor], slopes: Sequence[Tensor]) -> FinePath:
        """states: K of (n, *shape); slopes: as many, or one less where the last one is not known."""
        missing = [torch.zeros_like(states[0])] * (len(states) - len(slopes))
        gram = torch.zeros(2 * len(states), 2 * len(states), dtype=torch.float64)
        for part in zip(*(x.cpu().split(AT_ONCE) for x in (*states, *slopes, *missing)), strict=True):
            rows = torch.stack(part).flatten(1).double()
            gram += rows @ rows.T / len(states[0])
        return cls(grid, states[0], states[-1], gram)

    def best_grid(self, steps: int, solver: Solver, field: Field, others: Iterable[Grid] = ()) -> Grid:
        """The grid of N < K steps on which the solver, which must not draw noise, ends nearest to the path.

        It is one of these levels, or one of the others: how much of a step's error the rest of the path
        leaves is not known, so that several answers are tried on the particles.
        """

        def distance(grid: Grid) -> float:
            *_, end = path(solver, field, self.start, grid, torch.Generator(self.start.device))
            return (end - self.end).square().sum().item()

        return min((*(self.route(steps, solver, std) for std in STDS), *others), key=distance)

    def route(self, steps: int, solver: Solver, std: float) -> Grid:
        """The grid of N < K steps, of these levels, on which what remains of the errors sums to the least.

        The errors are those of the solver's own steps, each begun on the path.

        Of the routes to a level in so many steps the best is kept, and a multistep solver remembers its
        steps. std: of normal data; the rest of a path along their score leaves of an error at σ a share that
        is proportional to 1/√(std² + σ²).
        """
        last = self.grid.steps
        routes = [Route((0,), 0.0, ())]
        for left in reversed(range(steps)):
            found: dict[int, Route] = {}
            for route in routes:
                ends = range(route.stops[-1] + 1, last + 1 - left) if left else [last]
                for longer in self._extended(route, ends, left, solver, std):
                    end = longer.stops[-1]
                    if end not in found or longer.error < found[end].error:
                        found[end] = longer
            routes = list(found.values())
        return Grid(tuple(self.grid.points[i] for i in routes[0].stops), self.grid.end_known)

    def _extended(
        self, route: Route, ends: Sequence[int], left: int, solver: Solver, std: float
    ) -> list[Route]:
        """The route with a step more, to each of the ends, after which so many are left.

        Solvers are linear in states and slopes: a step is taken once for all particles, on coefficients.
        """
        moved, memories, start = [], [], route.stops[-1]
        for end in ends:
            points = [self.grid.points[i] for i in (*route.stops, end)]
            grid = Grid((*points, *points[-1:] * left), self.grid.end_known)
            interval = Interval(grid, len(route.stops) - 1)
            x, memory = solver.step(self._slope, self._unit(start), interval, route.memory, torch.Generator())
            moved.append(x - self._unit(end))
            memories.append(memory)
        error = torch.cat(moved)
        widths = [math.hypot(std, self.grid.points[end]) for end in ends]
        squares = ((error @ self.gram) * error).sum(1).clamp(min=0).tolist()
        return [
            Route((*route.stops, end), route.error + math.sqrt(square) / width, memory)
            for end, square, width, memory in zip(ends, squares, widths, memories, strict=True)
        ]

    def _unit(self, index: int) -> Tensor:
        row = torch.zeros(1, len(self.gram), dtype=torch.float64)
        row[0, index] = 1
        return row

    def _slope(self, _x: Tensor, sigma: float) -> Tensor:
        """The path's own slope; linearly interpolated between two of its levels."""
        points, first = self.grid.points, len(self.grid.points)
        below = bisect_left(points, -sigma, key=lambda level: -level)
        if points[below] == sigma:
            return self._unit(first + below)
        share = (points[below - 1] - sigma) / (points[below - 1] - points[below])
        return torch.lerp(self._unit(first + below - 1), self._unit(first + below), share)
