"""Noise levels: their end points, their order, and the distribution from which training draws."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from mpmath import mpf, workdps
from pydantic import ValidationError
from scipy import stats

from gpm_tune.config import MAX_MAGNITUDE, MAX_SAMPLING_STEPS
from gpm_tune.sampling.grids import (
    LearnedGrid,
    ListedGrid,
    LogSNRGrid,
    NoiseGrid,
    NoiseRange,
    RhoGrid,
    SigmaGrid,
    uniform_grid,
)

RHO = RhoGrid(name="rho")


def magnitudes(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that are as likely of one magnitude as of another."""
    return st.floats(low, high).map(lambda exponent: float(10.0**exponent))


@st.composite
def ranges(draw: st.DrawFn) -> NoiseRange:
    """Ranges that are accepted, however extreme."""
    low, ratio = draw(magnitudes(-7, 6)), draw(magnitudes(-4, 13).map(lambda excess: 1 + excess))
    try:
        return NoiseRange(sigma_min=low, sigma_max=low * ratio, rho=draw(magnitudes(-4, 7)))
    except ValidationError:
        reject()


@example(NoiseRange(rho=0.25), 8)
@example(NoiseRange(rho=0.0025), MAX_SAMPLING_STEPS)
@example(NoiseRange(rho=1e6), MAX_SAMPLING_STEPS)
@given(ranges(), st.integers(2, MAX_SAMPLING_STEPS))
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_a_grid_falls_from_sigma_max_to_sigma_min_to_zero(noise: NoiseRange, steps: int) -> None:
    grid = RHO.grid(steps, noise).points
    assert len(grid) == steps + 1
    assert (grid[0], grid[-2], grid[-1]) == (noise.sigma_max, noise.sigma_min, 0.0)
    for dtype in (torch.float64, torch.float32):
        levels = torch.tensor(grid, dtype=dtype)
        assert levels.isfinite().all()
        assert (levels.diff() < 0).all()


@example(NoiseRange(rho=0.25), [0.0, 0.5, 1 - 2**-24, 1.0])
@given(ranges(), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_drawn_levels_are_within_the_range_and_in_order(noise: NoiseRange, u: list[float]) -> None:
    for dtype in (torch.float64, torch.float32):
        low, high = torch.tensor([noise.sigma_min, noise.sigma_max], dtype=dtype)
        levels = noise.at(torch.tensor([0.0, *sorted(u), 1.0], dtype=dtype))
        assert levels.dtype == dtype
        assert (levels[0], levels[-1]) == (high, low)
        assert (levels.diff() <= 0).all(), "finite, and between the ends"


@given(magnitudes(-4, 4), magnitudes(0.1, 6), st.floats(0.3, 20), st.floats(0, 1))
def test_levels_follow_28(least: float, ratio: float, rho: float, u: float) -> None:
    noise = NoiseRange(sigma_min=least, sigma_max=min(least * ratio, MAX_MAGNITUDE), rho=rho)
    with workdps(50):
        high, low = (mpf(sigma) ** (1 / mpf(rho)) for sigma in (noise.sigma_max, noise.sigma_min))
        exact = (high + mpf(u) * (low - high)) ** mpf(rho)
    found = noise.at(torch.tensor(u, dtype=torch.float64)).item()
    assert found == pytest.approx(float(exact), rel=1e-12)


def test_one_step_goes_from_sigma_max_to_zero() -> None:
    assert RHO.grid(1, NoiseRange()).points == pytest.approx([40.0, 0.0])


def test_a_root_of_the_levels_is_evenly_spaced() -> None:
    roots = torch.tensor(RHO.grid(10, NoiseRange()).points[:-1]) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(9))


def test_drawn_levels_have_uniform_roots() -> None:
    """(28)."""
    noise = NoiseRange(sigma_min=0.1, sigma_max=10.0, rho=3.0)
    sigma = noise.at(torch.rand(5000, generator=torch.Generator().manual_seed(0)))
    roots = sigma ** (1 / 3)
    low, high = 0.1 ** (1 / 3), 10 ** (1 / 3)
    assert stats.kstest(roots, "uniform", args=(low, high - low)).pvalue > 0.001


@pytest.mark.parametrize(
    "keys",
    [
        {"rho": 0.001},
        {"rho": 1e-300},
        {"rho": 1e300},
        {"sigma_min": 1.0, "sigma_max": 1.0001},
        {"sigma_min": 1e-300},
        {"sigma_max": 1e300},
    ],
)
def test_ranges_that_would_collapse_are_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"too close to each other|greater than|less than"):
        NoiseRange.model_validate(keys)


@pytest.mark.parametrize("high", [0.5, 0.4])
def test_an_empty_range_is_refused(high: float) -> None:
    with pytest.raises(ValidationError, match=r"sigma_min \(0.5\) must be below sigma_max"):
        NoiseRange(sigma_min=0.5, sigma_max=high)


def test_uniform_grid() -> None:
    grid = uniform_grid(4)
    assert (grid.points, grid.end_known, grid.steps) == ((0, 0.25, 0.5, 0.75, 1), False, 4)


@given(st.integers(1, MAX_SAMPLING_STEPS))
def test_uniform_grids_rise_from_0_to_1(steps: int) -> None:
    times = torch.tensor(uniform_grid(steps).points)
    assert (times[0], times[-1]) == (0, 1)
    assert (times.diff() > 0).all()


NOISE = NoiseRange(sigma_min=0.01, sigma_max=10.0)
GRIDS: list[NoiseGrid] = [
    RHO,
    LogSNRGrid(name="log_snr"),
    SigmaGrid(name="sigma"),
    LearnedGrid(name="learned"),
    ListedGrid(name="listed", levels=(10.0, 3.0, 0.5, 0.01)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("steps", [1, 2, 3, 17])
def test_grids_fall_to_their_end_in_so_many_steps(grid: NoiseGrid, steps: int) -> None:
    to_zero = grid.grid(steps, NOISE)
    to_least = grid.model_copy(update={"end": "sigma_min"}).grid(steps, NOISE)
    assert to_zero.steps == to_least.steps == steps
    assert (to_zero.points[-1], to_zero.end_known) == (0, False)
    assert (to_least.points[-1], to_least.end_known) == (pytest.approx(0.01), True)
    assert to_zero.points[0] == to_least.points[0] == pytest.approx(10)
    if steps > 1:
        assert to_zero.points[-2] == pytest.approx(0.01)
    for each in (to_zero, to_least):
        assert (torch.tensor(each.points).diff() < 0).all()


def test_levels_are_spaced_as_the_names_say() -> None:
    levels = torch.tensor(LogSNRGrid(name="log_snr").grid(9, NOISE).points[:-1]).log()
    torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(8))
    levels = torch.tensor(SigmaGrid(name="sigma", end="sigma_min").grid(9, NOISE).points)
    torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(9))


def test_listed_levels_are_kept_and_halved_in_their_logarithm() -> None:
    listed = ListedGrid(name="listed", levels=(8.0, 2.0, 0.5), end="sigma_min")
    assert listed.grid(2, NOISE).points == pytest.approx((8.0, 2.0, 0.5))
    assert listed.grid(4, NOISE).points == pytest.approx((8.0, 4.0, 2.0, 1.0, 0.5))
    assert listed.model_copy(update={"end": "zero"}).grid(3, NOISE).points == pytest.approx((8, 2, 0.5, 0))


@pytest.mark.parametrize("levels", [(1.0, 2.0), (1.0, 1.0), (1.0,), (1.0, 0.0), (1e9, 1.0)])
def test_impossible_lists_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match=r"must decrease|at least 2|greater than|less than"):
        ListedGrid(name="listed", levels=levels)
