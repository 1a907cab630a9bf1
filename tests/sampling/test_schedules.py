"""Noise levels: their end points, their order, and the distribution from which training draws."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from gpm_tune.sampling.schedules import NoiseRange, uniform_grid


@given(st.integers(2, 100), st.floats(1.0, 10.0))
def test_a_grid_falls_from_sigma_max_to_sigma_min_to_zero(steps: int, rho: float) -> None:
    noise = NoiseRange(sigma_min=0.01, sigma_max=50.0, rho=rho)
    grid = noise.grid(steps)
    assert len(grid) == steps + 1
    assert grid[0] == pytest.approx(50.0)
    assert grid[-2] == pytest.approx(0.01)
    assert grid[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(grid))


def test_one_step_goes_from_sigma_max_to_zero() -> None:
    assert NoiseRange().grid(1) == pytest.approx([40.0, 0.0])


def test_a_root_of_the_levels_is_evenly_spaced() -> None:
    roots = torch.tensor(NoiseRange().grid(10)[:-1]) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(9))


def test_drawn_levels_have_uniform_roots() -> None:
    """(28)."""
    noise = NoiseRange(sigma_min=0.1, sigma_max=10.0, rho=3.0)
    sigma = noise.at(torch.rand(5000, generator=torch.Generator().manual_seed(0)))
    roots = sigma ** (1 / 3)
    low, high = 0.1 ** (1 / 3), 10 ** (1 / 3)
    assert stats.kstest(roots, "uniform", args=(low, high - low)).pvalue > 0.001


@pytest.mark.parametrize("high", [0.5, 0.4])
def test_an_empty_range_is_refused(high: float) -> None:
    with pytest.raises(ValidationError, match=r"sigma_min \(0.5\) must be below sigma_max"):
        NoiseRange(sigma_min=0.5, sigma_max=high)


def test_uniform_grid() -> None:
    assert uniform_grid(4) == [0, 0.25, 0.5, 0.75, 1]
