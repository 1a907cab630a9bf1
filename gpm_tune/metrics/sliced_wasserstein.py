"""The sliced Wasserstein distance of points, and of images' features, where it needs fewer samples than FID.

Of Inception's features it is what MIND is made of (Berthet et al. 2026, arXiv 2605.06797).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_tune.metrics.metric import Generated, Metric, Real

PROJECTIONS = 1000
OF_RESAMPLES = 50  # the directions' number hardly changes how resamples differ


class SlicedDistance:
    """Wasserstein-1 distance of projections on random directions, which are always the same, averaged."""

    def __init__(self, reference: Tensor) -> None:
        """reference: (m, D)."""
        rng = torch.Generator().manual_seed(0)
        directions = torch.randn(reference.shape[1], PROJECTIONS, generator=rng).to(reference)
        self._directions = directions / directions.norm(dim=0)
        self._reference = (reference @ self._directions).sort(dim=0).values

    def __call__(self, x: Tensor) -> Tensor:
        """The distance () of samples x (n, D)."""
        return self._between((x @ self._directions).sort(dim=0).values)

    def resampled(self, x: Tensor, weights: Tensor) -> Tensor:
        """The distances (R,) of x with each of weights (R, n), whole numbers, over 50 of the directions."""
        projected = x @ self._directions[:, :OF_RESAMPLES]
        sets = (projected.repeat_interleave(row.long(), 0) for row in weights)
        return torch.stack([self._between(projections.sort(dim=0).values) for projections in sets])

    def _between(self, x: Tensor) -> Tensor:
        """Of sorted projections (n, P) on the first P directions."""
        y = self._reference[:, : x.shape[1]]
        count = max(len(x), len(y))
        levels = (torch.arange(count, device=x.device) + 0.5) / count
        return (_quantiles(x, levels) - _quantiles(y, levels)).abs().mean()


def _quantiles(ordered: Tensor, levels: Tensor) -> Tensor:
    """Values at levels (L,) of each column's (n, P) empirical distribution."""
    return ordered[(levels * len(ordered)).long().clamp(max=len(ordered) - 1)]


class SlicedWasserstein(Metric):
    """The sliced Wasserstein-1 distance, over 1,000 directions."""

    name, mode, images, points = "sliced_wasserstein", "min", True, True

    def __init__(self, real: Real) -> None:
        self._distance = SlicedDistance(real.features)

    def measure(self, generated: Generated) -> float:
        """Biased upwards by few samples, as all distances of sets."""
        return self._distance(generated.x).item()

    def error(self, generated: Generated) -> float:
        """By bootstrap; too large where the distributions are the same, up to twice."""
        return self._distance.resampled(generated.x, generated.weights).std().item()
