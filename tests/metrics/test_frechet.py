"""The Fréchet distance: closed forms, ranks, weights, and the limit of infinitely many samples."""

import math

import pytest
import torch
from torch import Tensor

from gpm_tune.metrics.frechet import FrechetDistance, block_weights, extrapolate, fit_gaussian


def normal(n: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed))


def textbook(x: Tensor, y: Tensor) -> float:
    """By the symmetric square root of Σ_x."""
    x, y = x.double(), y.double()
    one, two = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(one)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + one.trace() + two.trace() - 2 * cross)


@pytest.mark.parametrize(("n", "m"), [(200, 300), (20, 300), (300, 20), (20, 25)])
def test_it_is_the_textbook_formula_at_any_rank(n: int, m: int) -> None:
    """32 dimensions: more than some of the samples span."""
    x, y = normal(n, 32) * torch.linspace(0, 2, 32), normal(m, 32, seed=1) @ normal(32, 32, seed=2) + 0.5
    assert FrechetDistance(fit_gaussian(y))(x).item() == pytest.approx(textbook(x, y), rel=1e-6)
    assert FrechetDistance(fit_gaussian(x))(x).item() == pytest.approx(0, abs=1e-5)


def test_weights_count_samples() -> None:
    x, y = normal(50, 8), normal(60, 8, seed=1)
    weights = torch.randint(4, (3, 50), generator=torch.Generator().manual_seed(0))
    repeated = torch.cat([FrechetDistance(fit_gaussian(y))(x.repeat_interleave(row, 0)) for row in weights])
    torch.testing.assert_close(FrechetDistance(fit_gaussian(y))(x, weights), repeated)


def test_block_weights_part_the_samples() -> None:
    weights = block_weights(11)
    assert len(weights) == 1 + 2 + 3
    for parts in weights.split([1, 2, 3]):
        assert parts.sum(0).tolist() == [1] * 11
        assert parts.sum(1).max() - parts.sum(1).min() <= 1


def test_extrapolation_leaves_the_limit_of_what_goes_with_1_over_n() -> None:
    distances = torch.cat([torch.full((parts,), 7 + 0.3 * parts) for parts in (1, 2, 3)])
    assert extrapolate(distances) == pytest.approx(7)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_fid_infinity_has_little_of_fids_bias(scale: float) -> None:
    """N(0, s²) against N(0, 1): D (s - 1)², which FID of 500 samples exceeds and FID∞ is close to."""
    dimensions, repeats = 16, 40
    frechet = FrechetDistance(fit_gaussian(normal(50_000, dimensions, seed=999)))
    found = torch.stack(
        [frechet(scale * normal(500, dimensions, s), block_weights(500)) for s in range(repeats)]
    )
    truth = dimensions * (scale - 1) ** 2
    bias = found[:, 0].mean().item() - truth
    limits = torch.tensor([extrapolate(row) for row in found])
    error = limits.std().item() / math.sqrt(repeats)
    assert bias > 10 * error
    assert abs(limits.mean().item() - truth) < 4 * error
