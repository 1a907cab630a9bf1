"""The modes of points that are drawn from a mixture of Gaussians, and those that samples cover."""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_tune.metrics.distances import pairwise_distances
from gpm_tune.metrics.metric import Generated, Metric, Real


def nearest_modes(x: Tensor, means: Tensor, std: float) -> Tensor:
    """The nearest mode (n,) of each sample (n, D), of M modes (M, D); M for those beyond 3 std of all."""
    distance, mode = pairwise_distances(x, means).min(dim=1)
    return torch.where(distance <= 3 * std, mode, len(means))


def modes_covered(x: Tensor, means: Tensor, std: float) -> float:
    """Fraction of modes with at least half of their fair share of the samples.

    A sample (n, D) belongs to its nearest mode (M, D) if it lies within 3 std of it; the fair share
    is n/M.
    """
    counts = torch.bincount(nearest_modes(x, means, std), minlength=len(means) + 1)[:-1]
    return (counts >= len(x) / len(means) / 2).float().mean().item()


class ModesCovered(Metric):
    """Fraction of the modes that have at least half of their fair share of the samples."""

    name, mode, points, needs_modes = "modes_covered", "max", True, True

    def __init__(self, real: Real) -> None:
        assert real.means is not None, "the modes are known"
        self._means, self._std = real.means, real.std

    def measure(self, generated: Generated) -> float:
        """Of as many samples as there are."""
        return modes_covered(generated.x, self._means.to(generated.x), self._std)

    def error(self, generated: Generated) -> float:
        """By bootstrap."""
        sets = [generated.x.repeat_interleave(row.long(), 0) for row in generated.weights]
        means = self._means.to(generated.x)
        return torch.tensor([modes_covered(x, means, self._std) for x in sets]).std().item()
