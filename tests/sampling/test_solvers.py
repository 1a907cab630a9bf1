"""Solvers: exact where they promise to be, of their order, and on the denoiser of a Gaussian mixture."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from gpm_tune.sampling.grids import LogSNRGrid, NoiseRange, RhoGrid, SigmaGrid
from gpm_tune.sampling.integration import Field, Grid, Interval, Solver, path, stopped
from gpm_tune.sampling.solvers import solver_names
from gpm_tune.sampling.solvers.ab import ABConfig
from gpm_tune.sampling.solvers.dpm2 import DPM2Config
from gpm_tune.sampling.solvers.dpmpp import DPMppConfig
from gpm_tune.sampling.solvers.euler import EulerConfig
from gpm_tune.sampling.solvers.heun import HeunConfig
from gpm_tune.sampling.solvers.ipndm import IPNDMConfig
from gpm_tune.sampling.solvers.langevin import LangevinConfig
from gpm_tune.sampling.solvers.restart import RestartConfig
from gpm_tune.sampling.solvers.unipc import UniPCConfig

MEANS = torch.tensor([[-1.5], [2.0]], dtype=torch.float64)
STD = 0.4
NOISE = NoiseRange(sigma_min=0.002, sigma_max=20.0, rho=7.0)
RHO = RhoGrid(name="rho")
EULER, HEUN = EulerConfig(name="euler"), HeunConfig(name="heun")


def grid(steps: int, noise: NoiseRange = NOISE) -> Grid:
    return RHO.grid(steps, noise)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def denoise(x: Tensor, sigma: float) -> Tensor:
    """E[data | data + σn = x] for an equal mixture of Gaussians in one dimension."""
    variance = STD**2 + sigma**2
    weights = torch.softmax(-(x - MEANS.T).square() / (2 * variance), dim=1)
    posterior = MEANS.T + STD**2 / variance * (x - MEANS.T)
    return (weights * posterior).sum(1, keepdim=True)


def field(x: Tensor, sigma: float) -> Tensor:
    """dx/dσ of the probability flow (8)."""
    return (x - denoise(x, sigma)) / sigma


def end(solver: Solver, x: Tensor, on: Grid, seed: int = 0, along: Field = field) -> Tensor:
    *_, last = path(solver, along, x, on, rng(seed))
    return last


def mixture_cdf(x: float, sigma: float = 0.0) -> float:
    scale = math.sqrt(STD**2 + sigma**2)
    return float(sum(stats.norm.cdf(x, mean, scale) for mean in MEANS[:, 0].tolist()) / 2)


def starts(n: int, sigma: float, seed: int = 1) -> Tensor:
    """Samples of the mixture with noise σ."""
    mode = torch.randint(2, (n,), generator=rng(seed))
    noise = torch.randn(n, 1, generator=rng(seed + 1), dtype=torch.float64)
    return MEANS[mode] + math.sqrt(STD**2 + sigma**2) * noise


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """dx/dσ for data that are N(0, STD²): an error of a step is seen against the exact path."""
    return sigma * x / (STD**2 + sigma**2)


def exact(x: Tensor, before: float, after: float) -> Tensor:
    """The path of `gaussian`: particles keep their place in units of the width."""
    return x * math.sqrt((STD**2 + after**2) / (STD**2 + before**2))


EVEN = SigmaGrid(name="sigma", end="sigma_min")
ORDERS: list[tuple[Solver, float]] = [
    (EULER, 1),
    (HEUN, 2),
    (DPM2Config(name="dpm2"), 2),
    *((IPNDMConfig(name="ipndm", order=order), order) for order in (1, 2, 3, 4)),
    *((ABConfig(name="ab", order=order), order) for order in (1, 2, 3, 4)),
    *((DPMppConfig(name="dpmpp", order=order, lower_order_at_end=False), order) for order in (1, 2, 3)),
    *((UniPCConfig(name="unipc", order=k, lower_order_at_end=False), k + 1) for k in (1, 2, 3)),
    *((UniPCConfig(name="unipc", order=k, corrector=False, lower_order_at_end=False), k) for k in (1, 2, 3)),
]


def from_exact_start(solver: Solver, on: Grid, warm_up: int = 4) -> Tensor:
    """The end of the path whose first states are exact, so that a multistep method starts in its order."""
    x, memory = torch.ones(1, 1, dtype=torch.float64), ()
    for index, (before, after) in enumerate(pairwise(on.points)):
        moved, memory = solver.step(gaussian, x, Interval(on, index), memory, rng())
        x = exact(x, before, after) if index < warm_up else moved
    return x


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=str)
def test_order_of_convergence_to_the_exact_path(solver: Solver, order: float) -> None:
    """Halving the steps divides the error by 2^order, on levels from 2 to 0.3."""
    noise = NoiseRange(sigma_min=0.3, sigma_max=2.0)
    truth = exact(torch.ones(1, 1, dtype=torch.float64), 2.0, 0.3)
    coarse, fine = (
        (from_exact_start(solver, EVEN.grid(steps, noise)) - truth).abs().item() for steps in (160, 320)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=str)
def test_a_start_of_lower_order_leaves_at_least_the_second(solver: Solver, order: float) -> None:
    noise = NoiseRange(sigma_min=0.5, sigma_max=5.0)
    start = torch.linspace(-6, 6, 25, dtype=torch.float64)[:, None]
    fine = end(ABConfig(name="ab", order=4), start, EVEN.grid(2000, noise))
    errors = [(end(solver, start, EVEN.grid(n, noise)) - fine).abs().mean() for n in (200, 400)]
    assert math.log2(errors[0] / errors[1]) > min(order, 2) - 0.15


LEVELS = st.lists(st.floats(0.05, 30.0), min_size=6, max_size=9, unique=True).filter(
    lambda levels: all(a / b > 1.05 for a, b in pairwise(sorted(levels, reverse=True)))
)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(LEVELS, st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_adams_bashforth_is_exact_for_polynomial_slopes(
    order: int, levels: list[float], coefficients: list[float]
) -> None:
    """On uneven grids, once so many slopes are known: a slope of degree below the order."""
    points = tuple(sorted(levels, reverse=True))
    slope = torch.tensor(coefficients[:order], dtype=torch.float64)

    def along(x: Tensor, sigma: float) -> Tensor:
        powers = torch.tensor([sigma**k for k in range(order)], dtype=torch.float64)
        return (slope @ powers).expand_as(x)

    x = torch.zeros(1, 1, dtype=torch.float64)
    states = [x, *path(ABConfig(name="ab", order=order), along, x, Grid(points, end_known=True), rng())]
    for index in range(order - 1, len(points) - 1):
        before, after = points[index], points[index + 1]
        whole = sum(
            c / (k + 1) * (after ** (k + 1) - before ** (k + 1)) for k, c in enumerate(slope.tolist())
        )
        moved = (states[index + 1] - states[index]).item()
        assert moved == pytest.approx(whole, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(
    ("solver", "degree"),
    [
        (DPMppConfig(name="dpmpp", order=1), 0),
        (DPMppConfig(name="dpmpp", order=3, lower_order_at_end=False), 2),
        (UniPCConfig(name="unipc", order=2, corrector=False, lower_order_at_end=False), 1),
        (UniPCConfig(name="unipc", order=3, corrector=False, lower_order_at_end=False), 2),
    ],
    ids=str,
)
@given(LEVELS, st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_exponential_methods_are_exact_for_polynomial_denoisers(
    solver: Solver, degree: int, levels: list[float], coefficients: list[float]
) -> None:
    """D(λ) a polynomial in λ = -ln σ: against SciPy's quadrature of the variation of constants."""
    points = tuple(sorted(levels, reverse=True))

    def value(lam: float) -> float:
        return sum(c * lam**k for k, c in enumerate(coefficients[: degree + 1]))

    def along(x: Tensor, sigma: float) -> Tensor:
        return (x - value(-math.log(sigma))) / sigma

    x = torch.ones(1, 1, dtype=torch.float64)
    states = [x, *path(solver, along, x, Grid(points, end_known=True), rng())]
    before, after = points[-2:]
    low, high = -math.log(before), -math.log(after)
    whole, _ = integrate.quad(lambda lam: math.exp(lam - high) * value(lam), low, high)
    expected = after / before * states[-2].item() + whole
    assert states[-1].item() == pytest.approx(expected, rel=1e-7, abs=1e-7)


ONE_STEP = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    "solver",
    [
        IPNDMConfig(name="ipndm", order=1),
        ABConfig(name="ab", order=1),
        DPMppConfig(name="dpmpp", order=1),
        UniPCConfig(name="unipc", order=1, corrector=False),
    ],
    ids=lambda solver: solver.name,
)
def test_at_order_one_each_is_eulers_method_which_is_ddim(solver: Solver) -> None:
    found = end(solver, 5 * ONE_STEP, grid(7))
    torch.testing.assert_close(found, end(EULER, 5 * ONE_STEP, grid(7)))
    x = 5 * ONE_STEP
    for before, after in pairwise(grid(7).points):  # DDIM: the same noise, less of it (Song et al. 2021)
        clean = denoise(x, before)
        x = clean + after * (x - clean) / before
    torch.testing.assert_close(found, x)


def test_two_steps_of_2m_by_hand() -> None:
    """Lu et al. 2022, Algorithm 2: D̄ = (1 + 1/2r) D₁ - 1/2r D₀."""
    first, second, third = 8.0, 2.0, 1.0
    solver = DPMppConfig(name="dpmpp", order=2, lower_order_at_end=False)
    found = end(solver, ONE_STEP, Grid((first, second, third), end_known=True))
    d0 = denoise(ONE_STEP, first)
    x = second / first * ONE_STEP + (1 - second / first) * d0
    d1 = denoise(x, second)
    r = math.log(first / second) / math.log(second / third)
    mixed = (1 + 1 / (2 * r)) * d1 - d0 / (2 * r)
    torch.testing.assert_close(found, third / second * x + (1 - third / second) * mixed)


def test_the_probability_flow_ends_in_the_data() -> None:
    """Its map is monotone in one dimension: quantiles go to quantiles, by an independent formula."""
    quantiles = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    start = 20.0 * torch.special.ndtri(quantiles)[:, None]
    ends = end(HEUN, start, grid(200))
    found = torch.tensor([mixture_cdf(x) for x in ends[:, 0].tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, quantiles, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "solver",
    [
        EulerConfig(name="euler", stochastic=1.0),
        EulerConfig(name="euler", stochastic=0.5),
        HeunConfig(name="heun", s_churn=40.0),
        DPMppConfig(name="dpmpp", order=2, stochastic=1.0),
        DPMppConfig(name="dpmpp", order=3, stochastic=0.5),
        RestartConfig(name="restart", restarts=3, steps=30, low=0.3, high=2.0),
    ],
    ids=str,
)
def test_stochastic_solvers_leave_the_marginals_invariant(solver: Solver) -> None:
    """From p * k_σ at every level down to the data (7)(21), against the mixture's own distribution."""
    n, noise = 6000, NoiseRange(sigma_min=0.002, sigma_max=5.0)
    on = grid(300, noise)
    for i, x in enumerate(path(solver, field, starts(n, 5.0), on, rng(3)), start=1):
        if i in (100, 200, 300):
            cdf = [mixture_cdf(value, on.points[i]) for value in x[::5, 0].tolist()]
            assert stats.kstest(cdf, "uniform").pvalue > 0.001, f"at σ = {on.points[i]}"


def test_the_invariance_test_notices_wrong_noise() -> None:
    """Churn with half the noise that belongs to it narrows the marginals."""
    wrong = HeunConfig(name="heun", s_churn=40.0, s_noise=0.5)
    on = grid(300, NoiseRange(sigma_min=0.002, sigma_max=5.0))
    x = next(x for i, x in enumerate(path(wrong, field, starts(6000, 5.0), on, rng(3)), 1) if i == 200)
    cdf = [mixture_cdf(value, on.points[200]) for value in x[::5, 0].tolist()]
    assert stats.kstest(cdf, "uniform").pvalue < 1e-4


def test_langevin_dynamics_samples_the_mixture() -> None:
    """NCSN (4)(6): from the widest noise level down, whatever the start within it."""
    solver = LangevinConfig(name="langevin", corrections=8, step_size=0.05)
    on = grid(60, NoiseRange(sigma_min=0.01, sigma_max=8.0, rho=4.0))
    x = end(solver, 8.0 * torch.randn(4000, 1, generator=rng(5), dtype=torch.float64), on)
    cdf = [mixture_cdf(value) for value in x[::4, 0].tolist()]
    assert stats.kstest(cdf, "uniform").statistic < 0.06


# Evaluations of N steps: so many each, and so many besides on a path to σ = 0, or to the least level.
EVALUATIONS: list[tuple[Solver, int, int, int]] = [
    (EULER, 1, 0, 0),
    (EulerConfig(name="euler", stochastic=1.0), 1, 0, 0),
    (HEUN, 2, -1, 0),
    (HeunConfig(name="heun", s_churn=10.0), 2, -1, 0),
    (DPM2Config(name="dpm2"), 2, -1, 0),
    (IPNDMConfig(name="ipndm"), 1, 0, 0),
    (ABConfig(name="ab"), 1, 0, 0),
    (DPMppConfig(name="dpmpp"), 1, 0, 0),
    (UniPCConfig(name="unipc"), 1, 0, 0),
    (LangevinConfig(name="langevin", corrections=3), 3, 0, 0),
    (RestartConfig(name="restart", restarts=2, steps=3), 2, 11, 12),
]


@pytest.mark.parametrize(("solver", "each", "to_zero", "to_least"), EVALUATIONS, ids=str)
def test_evaluations_to_zero_and_to_the_least_level(
    solver: Solver, each: int, to_zero: int, to_least: int
) -> None:
    calls = 0

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return field(x, sigma)

    x = torch.zeros(2, 1, dtype=torch.float64)
    for steps in (5, 16):
        for on, besides in (
            (grid(steps), to_zero),
            (LogSNRGrid(name="log_snr", end="sigma_min").grid(steps, NOISE), to_least),
        ):
            calls = 0
            assert end(solver, x, on, along=counted).isfinite().all()
            assert calls == each * steps + besides


def test_every_solver_is_in_these_tables() -> None:
    assert {solver.name for solver, *_ in EVALUATIONS} == set(solver_names())


def test_the_last_step_of_a_stochastic_path_is_the_denoiser() -> None:
    solver = EulerConfig(name="euler", stochastic=1.0)
    *_, before, last = path(solver, field, starts(10, 5.0), grid(20), rng())
    torch.testing.assert_close(last, denoise(before, 0.002))


def test_churn_is_confined_to_its_noise_levels() -> None:
    plain = list(path(HEUN, field, starts(5, 20.0), grid(12), rng()))
    confined = HeunConfig(name="heun", s_churn=20.0, s_min=0.01, s_max=0.3)
    churned = list(path(confined, field, starts(5, 20.0), grid(12), rng()))
    levels = list(pairwise(grid(12).points))
    first = next(i for i, (sigma, _) in enumerate(levels) if sigma <= 0.3)
    assert all(torch.equal(a, b) for a, b in zip(plain[:first], churned[:first], strict=True))
    assert not torch.equal(plain[first], churned[first])


STOCHASTIC: list[Solver] = [
    EulerConfig(name="euler", stochastic=0.3),
    HeunConfig(name="heun", s_churn=2.0),
    LangevinConfig(name="langevin"),
]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda solver: solver.name)
def test_random_stops_have_the_law_of_the_path(solver: Solver) -> None:
    on, n = grid(4), 20_000
    x = starts(n, NOISE.sigma_max)
    stops = torch.arange(4).repeat(n // 4)
    found = stopped(solver, field, x, on, stops, rng())
    states = [x, *path(solver, field, x, on, rng(5))]
    for stop in range(4):
        statistic = stats.ks_2samp(found[stops == stop][:, 0], states[stop][:, 0])
        assert statistic.pvalue > 1e-3, (stop, statistic)


def test_heuns_last_step_does_not_ask_the_field_where_the_grid_ends() -> None:
    """Nothing need be known there: neither a score at σ = 0 nor a flow at the end of its time."""
    seen: set[float] = set()

    def asked(x: Tensor, t: float) -> Tensor:
        seen.add(t)
        return -x

    end(HEUN, torch.ones(1, 1), Grid((0.0, 0.25, 0.5, 0.75, 1.0)), along=asked)
    assert seen == {0.0, 0.25, 0.5, 0.75}
