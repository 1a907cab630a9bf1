"""The energy distance of points."""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_tune.metrics.distances import CHUNK, pairwise_distances
from gpm_tune.metrics.metric import Generated, Metric, Real
from gpm_tune.metrics.resampling import mean_over_pairs, means_between


def energy_distance(x: Tensor, y: Tensor, within_y: float | None = None) -> float:
    """2 E‖X-Y‖ - E‖X-X'‖ - E‖Y-Y'‖, without bias (so that it may be slightly negative).

    x: (n, D), y: (m, D). within_y: the last term, if it is known already.
    """
    within_y = mean_distance_within(y) if within_y is None else within_y
    between = _sum_of_distances(x, y) / (len(x) * len(y))
    return 2 * between - mean_distance_within(x) - within_y


def mean_distance_within(x: Tensor) -> float:
    """Mean of ‖X-X'‖ over pairs of different points (n, D)."""
    return _sum_of_distances(x, x) / (len(x) * (len(x) - 1))


def _sum_of_distances(x: Tensor, y: Tensor) -> float:
    sums = [pairwise_distances(chunk, y).sum(dtype=torch.float64) for chunk in x.split(CHUNK)]
    return torch.stack(sums).sum().item()


class EnergyDistance(Metric):
    """The energy distance, in data space."""

    name, mode, points = "energy_distance", "min", True

    def __init__(self, real: Real) -> None:
        self._real = real.features
        self._within_real = mean_distance_within(self._real)

    def measure(self, generated: Generated) -> float:
        """Without bias, so that it may be slightly negative."""
        return energy_distance(generated.x, self._real, self._within_real)

    def error(self, generated: Generated) -> float:
        """By bootstrap; too large where the distributions are the same, up to twice."""
        x, weights = generated.x, generated.weights
        between = weights @ means_between(pairwise_distances, x, self._real).to(weights) / len(x)
        return (2 * between - mean_over_pairs(pairwise_distances, x, weights)).std().item()
