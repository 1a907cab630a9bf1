"""Learned grids: the best of all grids by brute force, and better than fixed ones where it counts."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from gpm_tune.sampling.grids import LogSNRGrid, NoiseRange, RhoGrid
from gpm_tune.sampling.integration import Grid, Interval, Solver, path
from gpm_tune.sampling.learned import FinePath
from gpm_tune.sampling.solvers.dpm2 import DPM2Config
from gpm_tune.sampling.solvers.dpmpp import DPMppConfig
from gpm_tune.sampling.solvers.euler import EulerConfig
from gpm_tune.sampling.solvers.heun import HeunConfig
from gpm_tune.sampling.solvers.ipndm import IPNDMConfig
from gpm_tune.sampling.solvers.unipc import UniPCConfig

RNG = torch.Generator()
DATA = torch.tensor([[0.4, -0.3], [-0.5, 0.6], [0.1, 0.2]], dtype=torch.float64)
NOISE = NoiseRange(sigma_min=0.01, sigma_max=10.0)
START = 10 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def field(x: Tensor, sigma: float) -> Tensor:
    """dx/dσ for a mixture of three Gaussians of standard deviation 0.1."""
    variance = 0.1**2 + sigma**2
    weights = torch.softmax(-torch.cdist(x, DATA).square() / (2 * variance), dim=1)
    return sigma * (x - weights @ DATA) / variance


def fine_path(grid: Grid) -> tuple[FinePath, list[Tensor], list[Tensor]]:
    """With the states, each the end of a path of its own, and the slopes at these."""
    states = [START]
    for before, after in pairwise(grid.points):
        between = torch.linspace(before, after, 41, dtype=torch.float64).tolist()
        *_, state = path(HeunConfig(name="heun"), field, states[-1], Grid(tuple(between), after > 0), RNG)
        states.append(state)
    slopes = [field(x, sigma) for x, sigma in zip(states, grid.points, strict=True) if sigma > 0]
    return FinePath.of(grid, states, slopes), states, slopes


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("solver", [EulerConfig(name="euler"), HeunConfig(name="heun")], ids=lambda s: s.name)
def test_no_other_grid_has_less_error(solver: Solver, end: str) -> None:
    """The errors of single steps from the path, weighted, of all grids with these levels."""
    grid = LogSNRGrid(name="log_snr", end=end).grid(8, NOISE)
    fine, states, slopes = fine_path(grid)

    def error(i: int, j: int) -> float:
        known = dict(zip(grid.points, slopes, strict=False))
        step = Interval(Grid((grid.points[i], grid.points[j]), grid.points[j] > 0), 0)
        moved, _ = solver.step(lambda _, sigma: known[sigma], states[i], step, (), RNG)
        distance = (moved - states[j]).square().sum(1).mean().sqrt().item()
        return distance / math.hypot(0.5, grid.points[j])

    routes = [(0, *between, 8) for between in combinations(range(1, 8), 3)]
    best = min(routes, key=lambda route: sum(error(i, j) for i, j in pairwise(route)))
    assert fine.route(4, solver, 0.5).points == tuple(grid.points[i] for i in best)


SOLVERS: list[Solver] = [
    EulerConfig(name="euler"),
    HeunConfig(name="heun"),
    DPM2Config(name="dpm2"),
    IPNDMConfig(name="ipndm", order=2),
    IPNDMConfig(name="ipndm", order=3),
    DPMppConfig(name="dpmpp", order=2),
    UniPCConfig(name="unipc", order=2),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_no_path_on_a_fixed_grid_ends_nearer_to_the_exact_one(solver: Solver) -> None:
    fine, states, _ = fine_path(LogSNRGrid(name="log_snr", end="sigma_min").grid(32, NOISE))

    def distance(grid: Grid) -> float:
        *_, found = path(solver, field, START, grid, RNG)
        return (found - states[-1]).square().sum(1).mean().sqrt().item()

    fixed = [RhoGrid(name="rho", end="sigma_min"), LogSNRGrid(name="log_snr", end="sigma_min")]
    grids = [grid.grid(6, NOISE) for grid in fixed]
    learned = fine.best_grid(6, solver, field, grids)
    assert (learned.steps, learned.points[0], learned.points[-1]) == (6, 10.0, pytest.approx(0.01))
    assert distance(learned) <= min(map(distance, grids))
    assert distance(learned) <= distance(fine.route(6, solver, 0.5))


def test_products_are_the_same_in_parts() -> None:
    """Particles are read a few at a time, which bounds the memory."""
    fine, states, slopes = fine_path(LogSNRGrid(name="log_snr").grid(3, NOISE))
    rows = torch.stack([*states, *slopes, torch.zeros_like(START)]).flatten(1)
    torch.testing.assert_close(fine.gram, rows @ rows.T / len(START))
