"""The four interpolations of appendix C.3: end points, norms, and the law along the way."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from gpm_tune.sampling.interpolation import INTERPOLATIONS, Interpolation

D = 64


def normal(n: int, seed: int, dimensions: int = D) -> Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", INTERPOLATIONS)
@given(seed=st.integers(0, 1000), dimensions=st.sampled_from([1, 2, 128, 3072]))
def test_end_points_are_exact(name: str, seed: int, dimensions: int) -> None:
    a, b = normal(3, seed, dimensions), normal(3, seed + 1, dimensions)
    between = INTERPOLATIONS[name](a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert between.shape == (3, 3, dimensions)
    assert between.isfinite().all()
    torch.testing.assert_close(between[0], a, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(between[2], b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_swapping_the_ends_reverses_the_path(name: str) -> None:
    a, b, t = normal(4, 0), normal(4, 1), torch.linspace(0, 1, 5)
    there, back = INTERPOLATIONS[name](a, b, t), INTERPOLATIONS[name](b, a, t)
    torch.testing.assert_close(there, back.flip(0))


def test_spherical_by_hand() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    middle = INTERPOLATIONS["spherical"](a, b, torch.tensor([0.5]))[0]
    torch.testing.assert_close(middle, torch.tensor([[3.0, 3.0]]) / math.sqrt(2))


def test_spherical_keeps_the_norm_of_ends_that_share_it() -> None:
    a, b = (5 * x / x.norm(dim=1, keepdim=True) for x in (normal(20, 0), normal(20, 1)))
    between = INTERPOLATIONS["spherical"](a, b, torch.linspace(0, 1, 7))
    torch.testing.assert_close(between.norm(dim=2), torch.full((7, 20), 5.0, dtype=torch.float64))


def test_parallel_ends_are_joined_straight() -> None:
    a = normal(3, 0)
    between = INTERPOLATIONS["spherical"](a, 2 * a, torch.tensor([0.5]))
    torch.testing.assert_close(between[0], 1.5 * a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("sign", [1, -1])
def test_ends_nearly_on_one_line_keep_their_norm(sign: int, distance: float, dtype: torch.dtype) -> None:
    a = normal(20, 0).to(dtype)
    b = sign * a + distance * normal(20, 1).to(dtype)
    between = INTERPOLATIONS["spherical"](a, b, torch.linspace(0, 1, 5))
    norms = torch.lerp(a.norm(dim=1), b.norm(dim=1), torch.linspace(0, 1, 5).to(dtype)[:, None])
    torch.testing.assert_close(between.norm(dim=2), norms)
    torch.testing.assert_close(between[[0, -1]], torch.stack([a, b]), rtol=1e-6, atol=1e-6)


def test_tails_survive_the_way_to_a_cauchy_variable_and_back() -> None:
    a = torch.tensor([[-8.0, -3.0, 0.0, 1e-9, 3.0, 8.0]], dtype=torch.float64)
    there = INTERPOLATIONS["cauchy-linear"](a, a, torch.tensor([0.5]))[0]
    torch.testing.assert_close(there, a, rtol=1e-6, atol=1e-12)


def marginal(interpolation: Interpolation, t: float) -> float:
    x = interpolation(normal(400, 0, 16), normal(400, 1, 16), torch.tensor([t]))
    return float(stats.kstest(x.flatten(), "norm").pvalue)


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_cauchy_linear_keeps_the_normal_law_of_coordinates(t: float) -> None:
    assert marginal(INTERPOLATIONS["cauchy-linear"], t) > 0.001
    assert marginal(INTERPOLATIONS["linear"], t) < 1e-6, "which the plain one does not"


def norm_law(interpolation: Interpolation, t: float) -> float:
    x = interpolation(normal(4000, 0), normal(4000, 1), torch.tensor([t]))
    return float(stats.kstest(x[0].norm(dim=1), stats.chi(D).cdf).pvalue)


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_spherical_cauchy_linear_keeps_the_law_of_the_norm(t: float) -> None:
    assert norm_law(INTERPOLATIONS["spherical-cauchy-linear"], t) > 0.001
    assert norm_law(INTERPOLATIONS["spherical"], t) < 1e-6, "which the plain one does not"
