"""Gradient flows in closed form: their functionals decrease, and Gaussians move as they must."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from gpm_tune.models.flow import FlowInputs
from gpm_tune.models.flows.kernel import (
    MMD,
    EnergyKernel,
    Entropy,
    FDivergence,
    GaussianKernel,
    KernelFlow,
    Stein,
    log_density,
    stein_direction,
)

DATA = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double() * 0.6 + torch.tensor([1.5, 0])
START = torch.randn(300, 2, generator=torch.Generator().manual_seed(1)).double() - 1


def squared_mmd(x: Tensor, y: Tensor, kernel: GaussianKernel | EnergyKernel) -> float:
    return (kernel(x, x).mean() - 2 * kernel(x, y).mean() + kernel(y, y).mean()).item()


@pytest.mark.parametrize("kernel", [GaussianKernel(name="gaussian"), EnergyKernel(name="energy")])
def test_the_mmd_decreases_at_every_small_step(kernel: GaussianKernel | EnergyKernel) -> None:
    functional, x = MMD(name="mmd", kernel=kernel), START
    values = [squared_mmd(x, DATA, kernel)]
    for _ in range(60):
        x = x + 0.2 * functional.direction(x, DATA)
        values.append(squared_mmd(x, DATA, kernel))
    assert all(after < before for before, after in itertools.pairwise(values))
    assert values[-1] < 0.5 * values[0]


def test_the_direction_of_the_mmd_is_the_gradient_of_half_its_square() -> None:
    """n times the gradient of MMD²/2 with respect to one particle of n, by autograd."""
    kernel = GaussianKernel(name="gaussian", bandwidth=0.8)
    x = START.clone().requires_grad_()
    value = (kernel(x, x).mean() - 2 * kernel(x, DATA).mean()) / 2
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(MMD(name="mmd", kernel=kernel).direction(START, DATA), -len(x) * gradient)


def kl(x: Tensor, data: Tensor, bandwidth: float) -> float:
    return (log_density(x, x, bandwidth) - log_density(x, data, bandwidth)).mean().item()


def test_the_kl_divergence_decreases_at_every_small_step() -> None:
    functional, x = FDivergence(name="f_divergence", bandwidth=0.5), START
    values = [kl(x, DATA, 0.5)]
    for _ in range(100):
        x = x + 0.01 * functional.direction(x, DATA)
        values.append(kl(x, DATA, 0.5))
    assert all(after < before for before, after in itertools.pairwise(values))
    assert values[-1] < 0.05 * values[0]


@pytest.mark.parametrize("f", ["forward_kl", "reverse_kl", "chi2", "jensen_shannon", "hellinger"])
def test_an_f_divergence_scales_the_direction_of_the_kl_by_r_times_its_second_derivative(f: str) -> None:
    """∇f'(r) = f''(r) r ∇log r, with f'' from autograd of f itself."""
    functions = {
        "forward_kl": lambda r: r * r.log(),
        "reverse_kl": lambda r: -r.log(),
        "chi2": lambda r: (r - 1).square(),
        "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
        "hellinger": lambda r: (r.sqrt() - 1).square(),
    }
    near = START[:50] * 0.5 + 0.5
    base = FDivergence(name="f_divergence", bandwidth=0.8).direction(near, DATA)
    found = FDivergence.model_validate({"name": "f_divergence", "f": f, "bandwidth": 0.8})
    r = (log_density(near, near, 0.8) - log_density(near, DATA, 0.8)).exp().requires_grad_()
    (first,) = torch.autograd.grad(functions[f](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(found.direction(near, DATA), (second * r)[:, None] * base)


def test_the_density_estimate_is_normalised() -> None:
    grid = torch.linspace(-8, 8, 321, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    density = log_density(points, DATA[:20], 0.5).exp()
    assert density.sum().item() * 0.05**2 == pytest.approx(1.0, abs=1e-3)


def test_entropy_spreads_a_gaussian_as_the_heat_equation_does() -> None:
    """dx = -∇log ρ: the variance of N(0, s²) grows at the rate 2, the estimate's bandwidth included."""
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).double()
    functional = Entropy(name="entropy", bandwidth=0.3)
    before = x.var().item()
    for _ in range(20):
        x = x + 0.01 * functional.direction(x, x)
    # -∇log of the smoothed N(0, s² + 0.09) at x is x/(s² + 0.09).
    expected = before
    for _ in range(20):
        expected *= (1 + 0.01 / (expected + 0.09)) ** 2
    assert x.var().item() == pytest.approx(expected, rel=0.03)


def test_the_kl_flow_moves_a_gaussian_as_its_closed_form_says() -> None:
    """Towards N(m, s²) with variances v and means u: du/dt = (m-u)/(s²+h²), for a first small step."""
    bandwidth = 0.4
    generator = torch.Generator().manual_seed(3)
    x = 0.8 * torch.randn(6000, 1, generator=generator).double()
    data = 1.0 + 0.8 * torch.randn(6000, 1, generator=generator).double()
    drift = FDivergence(name="f_divergence", bandwidth=bandwidth).direction(x, data).mean().item()
    assert drift == pytest.approx(1.0 / (0.8**2 + bandwidth**2), rel=0.08)


def test_stein_descent_reaches_the_moments_of_a_gaussian() -> None:
    """(18) with the exact score of N(m, S)."""
    mean = torch.tensor([1.0, -1.0]).double()
    precision = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).double() * 0.3
    kernel = GaussianKernel(name="gaussian", bandwidth=0.9)
    for _ in range(1500):
        x = x + 0.2 * stein_direction(x, -(x - mean) @ precision, kernel)
    torch.testing.assert_close(x.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), torch.linalg.inv(precision), atol=0.08, rtol=0.08)


def test_the_stein_direction_is_its_definition() -> None:
    """(1/n) Σ_j k(x, x_j) s_j + ∇_{x_j} k(x, x_j), by autograd."""
    x, score = START[:20], torch.randn(20, 2).double()
    kernel = GaussianKernel(name="gaussian", bandwidth=0.7)
    for i in range(3):
        y = x.clone().requires_grad_()
        weights = kernel(x[i : i + 1], y)
        (gradient,) = torch.autograd.grad(weights.sum(), y)
        expected = (weights[0, :, None] * score + gradient).mean(0)
        torch.testing.assert_close(stein_direction(x, score, kernel)[i], expected.detach())


def test_equal_particles_do_not_repel_each_other() -> None:
    """In single precision, far from the origin, by a narrow kernel."""
    x = torch.full((100, 3), 7.3)
    kernel = GaussianKernel(name="gaussian", bandwidth=1e-3)
    assert (stein_direction(x, torch.zeros_like(x), kernel) == 0).all()
    for functional in (
        MMD(name="mmd"),
        MMD(name="mmd", kernel=kernel),
        Entropy(name="entropy", bandwidth=1e-3),
    ):
        assert (functional.direction(x, x) == 0).all()


def test_stein_follows_the_score_of_the_datas_density_estimate() -> None:
    found = Stein(name="stein", bandwidth=0.5).direction(START, DATA)
    toward = (DATA.mean(0) - START.mean(0)) @ found.mean(0)
    assert toward > 0


def test_a_flow_is_the_weighted_sum_of_its_functionals_and_keeps_the_datas_samples() -> None:
    mmd, entropy = MMD(name="mmd", weight=2.0), Entropy(name="entropy", weight=0.5)
    images = DATA.view(-1, 1, 1, 2)
    flow = KernelFlow((mmd, entropy), (1, 1, 2), 100, FlowInputs(samples=images))
    x = START.view(-1, 1, 1, 2)
    expected = 2.0 * mmd.direction(START, DATA[:100]) + 0.5 * entropy.direction(START, DATA[:100])
    found = flow.direction(x, None, torch.Generator())
    torch.testing.assert_close(found, expected.view_as(x))
    restored = KernelFlow((mmd, entropy), (1, 1, 2), 100, FlowInputs()).double()
    restored.load_state_dict(flow.state_dict())
    torch.testing.assert_close(restored.direction(x, None, torch.Generator()), found)


def test_coinciding_particles_have_finite_directions() -> None:
    x = torch.zeros(5, 2)
    for functional in (MMD(name="mmd"), FDivergence(name="f_divergence"), Stein(name="stein")):
        assert functional.direction(x, torch.zeros(3, 2)).isfinite().all()


def test_the_gaussian_kernel_by_hand() -> None:
    kernel = GaussianKernel(name="gaussian", bandwidth=2.0)
    value = kernel(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    assert value.item() == pytest.approx(math.exp(-25 / 8))
