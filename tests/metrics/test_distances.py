"""Distances between points, against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpm_tune.data import GaussiansConfig
from gpm_tune.errors import DivergedError
from gpm_tune.metrics import DEFAULTS, Points, Quality, Real
from gpm_tune.metrics.distances import pairwise_distances
from gpm_tune.metrics.energy import energy_distance
from gpm_tune.metrics.frechet import FrechetDistance, fit_gaussian
from gpm_tune.metrics.modes import modes_covered, nearest_modes
from gpm_tune.metrics.sliced_wasserstein import SlicedDistance


def normal(n: int, dimensions: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(0, 100),
    st.sampled_from([1, 2, 64, 65, 300]),
    st.floats(-6, 2),
    st.floats(0, 1e3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_distances_are_those_of_the_differences(
    seed: int, dimensions: int, spread: float, away: float, dtype: torch.dtype
) -> None:
    """Of points that are as close as may be, and as far from the origin."""
    x = (away + 10**spread * normal(60, dimensions, seed).double()).to(dtype)
    y = torch.cat([x[::7], (away + 10**spread * normal(30, dimensions, seed + 1).double()).to(dtype)])
    found = pairwise_distances(x, y).double()
    expected = (x.double()[:, None] - y.double()).norm(dim=2)
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-8, atol=0)
    assert torch.equal(found == 0, (x[:, None] == y).all(2))


@pytest.mark.parametrize("dimensions", [2, 128])
def test_equal_points_have_no_distance_however_many(dimensions: int) -> None:
    x = normal(1, dimensions).repeat(500, 1)
    assert (pairwise_distances(x, x) == 0).all()
    assert energy_distance(x, x) == 0


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    return SlicedDistance(y)(x).item()


def frechet_distance(x: Tensor, y: Tensor) -> float:
    return FrechetDistance(fit_gaussian(y))(x).item()


def test_samples_in_a_mode_belong_to_it_however_many_modes() -> None:
    means = 1e4 + normal(40)
    assert nearest_modes(means, means, 1e-9).tolist() == list(range(40))


def test_frechet_distance_of_gaussians() -> None:
    """Shift by d and scale by s: d² + D (s - 1)²."""
    x, y = normal(20_000), 3 * normal(20_000, seed=1) + torch.tensor([2.0, 0.0])
    assert frechet_distance(x, y) == pytest.approx(4 + 2 * (3 - 1) ** 2, rel=0.03)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by d in the plane moves projections by d |cos φ|: d · 2/π on average."""
    x = normal(1000)
    assert sliced_wasserstein(x, x + torch.tensor([3.0, 0.0])) == pytest.approx(3 * 2 / math.pi, rel=0.05)
    assert sliced_wasserstein(x, x) == 0


def test_sliced_wasserstein_of_different_counts() -> None:
    line = torch.arange(6.0)[:, None]
    assert sliced_wasserstein(line, line.repeat_interleave(3, 0)) == 0
    assert sliced_wasserstein(line, line[::2] + 0.5) == pytest.approx(0.5)


def test_sliced_wasserstein_of_resamples_is_that_of_the_repeated_samples() -> None:
    x, y = normal(60, 20), 1 + normal(80, 20, seed=1)
    weights = torch.stack([torch.ones(60), torch.arange(60) % 3]).double()
    found = SlicedDistance(y).resampled(x, weights)
    repeated = x[torch.arange(60).repeat_interleave(weights[1].long())]
    for distance, samples in zip(found, (x, repeated), strict=True):
        assert distance.item() == pytest.approx(sliced_wasserstein(samples, y), rel=0.1), "fewer directions"


def test_sliced_wasserstein_of_a_shift_in_many_dimensions() -> None:
    """Along a random direction a unit vector moves by |u|, with E|u| = Γ(D/2) / (√π Γ((D+1)/2))."""
    dimensions = 128
    x = normal(200, dimensions)
    shift = 3 / math.sqrt(dimensions) * torch.ones(dimensions)
    mean = math.exp(math.lgamma(dimensions / 2) - math.lgamma((dimensions + 1) / 2)) / math.sqrt(math.pi)
    assert sliced_wasserstein(x, x + shift) == pytest.approx(3 * mean, rel=0.05)


def test_energy_distance_of_gaussians() -> None:
    """In one dimension, N(0,1) against N(d,1) with the folded normal's mean."""
    d = 2.0
    between = math.sqrt(2) * (
        math.sqrt(2 / math.pi) * math.exp(-(d**2) / 4) + d / math.sqrt(2) * math.erf(d / 2)
    )
    expected = 2 * between - 2 * 2 / math.sqrt(math.pi)
    measured = energy_distance(normal(3000, 1), normal(3000, 1, seed=1) + d)
    assert measured == pytest.approx(expected, rel=0.08)


def test_energy_distance_is_unbiased() -> None:
    values = [energy_distance(normal(50, seed=2 * i), normal(50, seed=2 * i + 1)) for i in range(200)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / math.sqrt(200)
    assert abs(mean) < 4 * error


@given(st.integers(0, 100), st.integers(3, 40), st.integers(3, 40))
def test_all_are_symmetric_and_ignore_the_order_of_samples(seed: int, n: int, m: int) -> None:
    x, y = normal(n, seed=seed), normal(m, seed=seed + 1) * 2 + 1
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    for distance in (energy_distance, sliced_wasserstein, frechet_distance):
        assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-4, abs=1e-5)
        assert distance(x, y) == pytest.approx(distance(shuffled, y), rel=1e-4, abs=1e-5)


def test_modes_covered_counts_modes_with_half_their_share() -> None:
    means = GaussiansConfig(name="gaussians").means
    everywhere = means.repeat(20, 1)
    assert modes_covered(everywhere, means, 0.5) == 1
    assert modes_covered(means[:1].repeat(100, 1), means, 0.5) == pytest.approx(0.2)
    assert modes_covered(torch.zeros(100, 2), means, 0.5) == 0
    few = torch.cat([means[:4].repeat(23, 1), means[4:].repeat(8, 1)])  # 8 of 100 is below 10
    assert modes_covered(few, means, 0.5) == pytest.approx(0.8)


def test_data_against_data_is_close_to_nothing() -> None:
    config = GaussiansConfig(name="gaussians", samples=5000)
    data = config.load(0)
    real = Real(data.validation, Points("cpu"), means=config.means, std=config.std)
    metrics = Quality(DEFAULTS["points"], real)(data.test)
    assert list(metrics) == list(DEFAULTS["points"])
    assert metrics["sliced_wasserstein"] < 0.1
    assert abs(metrics["energy_distance"]) < 0.005
    assert metrics["frechet"] < 0.02
    assert metrics["modes_covered"] == 1


def test_non_finite_samples_are_a_divergence() -> None:
    metrics = Quality(["frechet"], Real(normal(10), Points("cpu")))
    with pytest.raises(DivergedError):
        metrics(torch.tensor([[1.0, math.inf]]))
