"""KID against the reference implementation, and its laws."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from gpm_tune.metrics import resampling
from gpm_tune.metrics.kid import KernelDistance


def normal(n: int, dimensions: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_that_of_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all samples as the one subset; ours in chunks that do not divide them."""
    monkeypatch.setattr(resampling, "CHUNK", 70)
    x, y = normal(200) * 1.5 + 0.3, normal(200, seed=1)
    assert KernelDistance(y)(x).item() == pytest.approx(poly_mmd(y, x).item(), rel=1e-9)


def test_sets_may_differ_in_size() -> None:
    """The expectation is the same: that of a shift in one dimension, in closed form."""
    shift = 2.0
    x, y = normal(4000, 1) + shift, normal(3000, 1, seed=1)

    def mean_kernel(a: float, b: float) -> float:
        """E (xy + 1)³ for independent x ~ N(a, 1), y ~ N(b, 1)."""
        third = (a**3 + 3 * a) * (b**3 + 3 * b)
        return third + 3 * (a * a + 1) * (b * b + 1) + 3 * a * b + 1

    expected = mean_kernel(shift, shift) + mean_kernel(0, 0) - 2 * mean_kernel(shift, 0)
    assert KernelDistance(y)(x).item() == pytest.approx(expected, rel=0.1)


def test_it_is_zero_on_average_for_equal_distributions() -> None:
    values = torch.cat(
        [KernelDistance(normal(60, seed=2 * s + 1))(normal(50, seed=2 * s)) for s in range(200)]
    )
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()


def test_samples_without_weight_do_not_count() -> None:
    x, y = normal(40), normal(50, seed=1) * 2
    weights = (torch.arange(40) < 25).double()[None]
    torch.testing.assert_close(KernelDistance(y)(x, weights), KernelDistance(y)(x[:25]))
