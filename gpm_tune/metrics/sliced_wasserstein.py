"""The sliced Wasserstein distance."""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_tune.metrics.metric import Generated, Metric, Real

PROJECTIONS = 50  # of a resample: the directions' number hardly changes how resamples differ


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 1000) -> float:
    """Wasserstein-1 distance of projections on random directions, averaged over directions.

    x: (n, D), y: (m, D). The directions are the same at every call.
    """
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape[1], projections, generator=rng).to(x)
    directions = directions / directions.norm(dim=0)
    levels = (torch.arange(max(len(x), len(y)), device=x.device) + 0.5) / max(len(x), len(y))
    return (_quantiles(x @ directions, levels) - _quantiles(y @ directions, levels)).abs().mean().item()


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Values (n, P) at levels (L,) of each column's empirical distribution."""
    ordered = values.sort(dim=0).values
    return ordered[(levels * len(values)).long().clamp(max=len(values) - 1)]


class SlicedWasserstein(Metric):
    """Wasserstein-1 distance of projections, averaged over the same directions at every call."""

    name, mode, points = "sliced_wasserstein", "min", True

    def __init__(self, real: Real) -> None:
        self._real = real.features

    def measure(self, generated: Generated) -> float:
        """Over 1,000 directions."""
        return sliced_wasserstein(generated.x, self._real)

    def error(self, generated: Generated) -> float:
        """By bootstrap; too large where the distributions are the same, up to twice."""
        sets = [generated.x.repeat_interleave(row.long(), 0) for row in generated.weights]
        return torch.tensor([sliced_wasserstein(x, self._real, PROJECTIONS) for x in sets]).std().item()
