"""Solvers over noise levels, on the analytic denoiser of a Gaussian mixture."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from gpm_tune.sampling.schedules import NoiseRange
from gpm_tune.sampling.solvers import EulerConfig, HeunConfig, LangevinConfig, Solver

MEANS = torch.tensor([[-1.5], [2.0]], dtype=torch.float64)
STD = 0.4
NOISE = NoiseRange(sigma_min=0.002, sigma_max=20.0, rho=7.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """E[data | data + σn = x] for an equal mixture of Gaussians in one dimension."""
    variance = STD**2 + sigma[:, None].square()
    weights = torch.softmax(-(x - MEANS.T).square() / (2 * variance), dim=1)
    posterior = MEANS.T + STD**2 / variance * (x - MEANS.T)
    return (weights * posterior).sum(1, keepdim=True)


def field(x: Tensor, sigma: Tensor) -> Tensor:
    """dx/dσ of the probability flow (8)."""
    return (x - denoise(x, sigma)) / sigma[:, None]


def mixture_cdf(x: float, sigma: float = 0.0) -> float:
    scale = math.sqrt(STD**2 + sigma**2)
    return float(sum(stats.norm.cdf(x, mean, scale) for mean in MEANS[:, 0].tolist()) / 2)


def end(solver: Solver, x: Tensor, grid: list[float], seed: int = 0) -> Tensor:
    *_, last = solver.path(field, x, grid, rng(seed))
    return last


def starts(n: int, sigma: float, seed: int = 1) -> Tensor:
    """Samples of the mixture with noise σ."""
    mode = torch.randint(2, (n,), generator=rng(seed))
    noise = torch.randn(n, 1, generator=rng(seed + 1), dtype=torch.float64)
    return MEANS[mode] + math.sqrt(STD**2 + sigma**2) * noise


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence_to_the_probability_flow(name: str, order: int) -> None:
    """On an interval of noise levels without 0: halving the steps divides the error by 2^order."""
    solver: Solver = EulerConfig(name="euler") if name == "euler" else HeunConfig(name="heun")
    start = torch.linspace(-6, 6, 25, dtype=torch.float64)[:, None]

    def at(steps: int, by: Solver) -> Tensor:
        return end(by, start, torch.linspace(5.0, 0.5, steps + 1, dtype=torch.float64).tolist())

    exact = at(8000, HeunConfig(name="heun"))
    coarse, fine = ((at(steps, solver) - exact).abs().mean() for steps in (200, 400))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_the_probability_flow_ends_in_the_data() -> None:
    """Its map is monotone in one dimension: quantiles go to quantiles, by an independent formula."""
    quantiles = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    start = 20.0 * torch.special.ndtri(quantiles)[:, None]
    ends = end(HeunConfig(name="heun"), start, NOISE.grid(200))
    found = torch.tensor([mixture_cdf(x) for x in ends[:, 0].tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, quantiles, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "solver",
    [
        EulerConfig(name="euler", stochastic=1.0),
        EulerConfig(name="euler", stochastic=0.5),
        HeunConfig(name="heun", s_churn=40.0),
    ],
)
def test_stochastic_solvers_leave_the_marginals_invariant(solver: Solver) -> None:
    """From p * k_σ at every level down to the data (7)(21), against the mixture's own distribution."""
    n, noise = 6000, NoiseRange(sigma_min=0.002, sigma_max=5.0)
    grid = noise.grid(300)
    for i, x in enumerate(solver.path(field, starts(n, 5.0), grid, rng(3)), start=1):
        if i in (100, 200, 300):
            cdf = [mixture_cdf(value, grid[i]) for value in x[::5, 0].tolist()]
            assert stats.kstest(cdf, "uniform").pvalue > 0.001, f"at σ = {grid[i]}"


def test_the_invariance_test_notices_wrong_noise() -> None:
    """Churn with half the noise that belongs to it narrows the marginals."""
    wrong = HeunConfig(name="heun", s_churn=40.0, s_noise=0.5)
    grid = NoiseRange(sigma_min=0.002, sigma_max=5.0).grid(300)
    x = next(x for i, x in enumerate(wrong.path(field, starts(6000, 5.0), grid, rng(3)), 1) if i == 200)
    cdf = [mixture_cdf(value, grid[200]) for value in x[::5, 0].tolist()]
    assert stats.kstest(cdf, "uniform").pvalue < 1e-4


def test_langevin_dynamics_samples_the_mixture() -> None:
    """NCSN (4)(6): from the widest noise level down, whatever the start within it."""
    solver = LangevinConfig(name="langevin", corrections=8, step_size=0.05)
    grid = NoiseRange(sigma_min=0.01, sigma_max=8.0, rho=4.0).grid(60)
    x = end(solver, 8.0 * torch.randn(4000, 1, generator=rng(5), dtype=torch.float64), grid)
    cdf = [mixture_cdf(value) for value in x[::4, 0].tolist()]
    assert stats.kstest(cdf, "uniform").statistic < 0.06


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [
        (EulerConfig(name="euler"), lambda n: n),
        (EulerConfig(name="euler", stochastic=1.0), lambda n: n),
        (HeunConfig(name="heun"), lambda n: 2 * n - 1),
        (HeunConfig(name="heun", s_churn=10.0), lambda n: 2 * n - 1),
        (LangevinConfig(name="langevin", corrections=3), lambda n: 3 * n),
    ],
)
def test_evaluations_are_as_many_as_promised(solver: Solver, evaluations: Callable[[int], int]) -> None:
    calls = 0

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return field(x, sigma)

    for steps in (1, 5, 16):
        calls = 0
        list(solver.path(counted, torch.zeros(2, 1, dtype=torch.float64), NOISE.grid(steps), rng()))
        assert calls == evaluations(steps)
    for nfe in range(3, 40):  # the longest grid that the evaluations allow
        assert evaluations(solver.steps(nfe)) <= nfe < evaluations(solver.steps(nfe) + 1)


def test_the_last_step_of_a_stochastic_path_is_the_denoiser() -> None:
    solver = EulerConfig(name="euler", stochastic=1.0)
    *_, before, last = solver.path(field, starts(10, 5.0), NOISE.grid(20), rng())
    torch.testing.assert_close(last, denoise(before, torch.full((10,), 0.002, dtype=torch.float64)))


def test_churn_is_confined_to_its_noise_levels() -> None:
    plain = list(HeunConfig(name="heun").path(field, starts(5, 20.0), NOISE.grid(12), rng()))
    confined = HeunConfig(name="heun", s_churn=20.0, s_min=0.01, s_max=0.3)
    churned = list(confined.path(field, starts(5, 20.0), NOISE.grid(12), rng()))
    levels = list(pairwise(NOISE.grid(12)))
    first = next(i for i, (sigma, _) in enumerate(levels) if sigma <= 0.3)
    assert all(torch.equal(a, b) for a, b in zip(plain[:first], churned[:first], strict=True))
    assert not torch.equal(plain[first], churned[first])


STOCHASTIC: list[Solver] = [
    EulerConfig(name="euler", stochastic=0.3),
    HeunConfig(name="heun", s_churn=2.0),
    LangevinConfig(name="langevin"),
]


@pytest.mark.parametrize("solver", [EulerConfig(name="euler"), HeunConfig(name="heun")], ids=lambda s: s.name)
def test_a_random_stop_is_a_state_of_the_path(solver: Solver) -> None:
    grid = NOISE.grid(5)
    x = torch.linspace(-60, 60, 200, dtype=torch.float64)[:, None]
    stops = torch.randint(5, (200,), generator=rng())
    states = [x, *solver.path(field, x, grid, rng())]
    expected = torch.stack([states[int(stop)][row] for row, stop in enumerate(stops)])
    torch.testing.assert_close(solver.until(field, x, grid, stops, rng()), expected)


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda solver: solver.name)
def test_random_stops_have_the_law_of_the_path(solver: Solver) -> None:
    grid, n = NOISE.grid(4), 20_000
    x = starts(n, NOISE.sigma_max)
    stops = torch.arange(4).repeat(n // 4)
    found = solver.until(field, x, grid, stops, rng())
    states = [x, *solver.path(field, x, grid, rng(5))]
    for stop in range(4):
        statistic = stats.ks_2samp(found[stops == stop][:, 0], states[stop][:, 0])
        assert statistic.pvalue > 1e-3, (stop, statistic)


def test_heuns_last_step_does_not_ask_the_field_where_the_grid_ends() -> None:
    """Nothing need be known there: neither a score at σ = 0 nor a flow at the end of its time."""
    seen: set[float] = set()

    def asked(x: Tensor, t: Tensor) -> Tensor:
        seen.update(t.tolist())
        return -x

    list(HeunConfig(name="heun").path(asked, torch.ones(1, 1), [0.0, 0.25, 0.5, 0.75, 1.0], rng()))
    assert seen == {0.0, 0.25, 0.5, 0.75}
