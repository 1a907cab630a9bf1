"""Distances between clouds of points, for data of few dimensions, in data space."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpm_tune.metrics.features import finite
from gpm_tune.metrics.frechet import FrechetDistance, fit_gaussian

CHUNK = 1000  # rows of a distance matrix that are in memory at once
FEW_DIMENSIONS = 64  # with more, a matrix product is several times as fast as all differences
CLOSE = 1e-6  # squared distance, in squared lengths, below which a matrix product has lost too many digits


class PointMetrics:
    """All distances of generated points from a reference set, and of a mixture's, the modes they cover."""

    modes: ClassVar[dict[str, Literal["min", "max"]]] = {
        "sliced_wasserstein": "min",
        "energy_distance": "min",
        "frechet": "min",
        "modes_covered": "max",
    }

    def __init__(self, reference: Tensor, means: Tensor | None, std: float) -> None:
        """reference: (N, D) real points; means: (M, D) and std: the modes they were drawn from, if known."""
        self._reference, self._std = reference, std
        self._means = None if means is None else means.to(reference.device)
        self._within_reference = mean_distance_within(reference)

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """The metrics of samples (n, D); raises DivergedError where they are not finite."""
        samples, real = finite(samples), self._reference
        distances = {
            "sliced_wasserstein": sliced_wasserstein(samples, real),
            "energy_distance": energy_distance(samples, real, self._within_reference),
            "frechet": frechet_distance(samples, real),
        }
        if self._means is None:
            return distances
        return {**distances, "modes_covered": modes_covered(samples, self._means, self._std)}


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


def pairwise_distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i - y_j‖, (n, m), of x (n, D) and y (m, D): exact for points that are close, 0 for equal ones.

    In many dimensions in double precision, by ‖x‖² + ‖y‖² - 2 x·y where that keeps its digits.
    """
    if x.shape[1] > FEW_DIMENSIONS:
        x, y = x.double(), y.double()
        lengths = x.square().sum(1)[:, None] + y.square().sum(1)
        squares = lengths.addmm(x, y.T, alpha=-2)
        i, j = (squares <= CLOSE * lengths).nonzero(as_tuple=True)
        if len(i) <= 10 * len(x):
            squares[i, j] = (x[i] - y[j]).square().sum(1)
            return squares.sqrt()
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


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


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Wasserstein-2 between Gaussian fits of x (n, D) and y (m, D)."""
    return FrechetDistance(fit_gaussian(y))(x).item()


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
