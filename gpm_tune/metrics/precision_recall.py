"""Precision and recall of samples against a reference (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gpm_tune.metrics.distances import CHUNK, neighbour_distances, pairwise_distances
from gpm_tune.metrics.metric import Generated, Metric, Real
from gpm_tune.metrics.resampling import jackknife_error

NEIGHBOURS = 3


class Overlap(NamedTuple):
    """How two clouds of points lie in each other's balls: about a point, up to its third neighbour."""

    precise: Tensor  # (n,): whether a sample is in a ball of the reference
    recalled: Tensor  # (m,): whether a point of the reference is in a ball of the samples
    alone: Tensor  # (n,): points of the reference that are in this sample's ball and in no other

    @property
    def precision(self) -> float:
        """Fraction of the samples that look like the reference."""
        return self.precise.double().mean().item()

    @property
    def recall(self) -> float:
        """Fraction of the reference that the samples could have produced."""
        return self.recalled.double().mean().item()

    @property
    def recall_error(self) -> float:
        """Standard error of the recall over samples: the jackknife's, of balls that keep their size.

        Repeated samples have no distance, so that a bootstrap's balls would be too small.
        """
        return jackknife_error(self.alone / len(self.recalled))


class Manifold:
    """The balls about a reference's points."""

    def __init__(self, reference: Tensor) -> None:
        """reference: (m, D), of more than three points."""
        self._reference = reference.double()
        self._radii = neighbour_distances(self._reference, NEIGHBOURS)

    def __call__(self, x: Tensor) -> Overlap:
        """The overlap with samples x (n, D), of which there have to be more than three."""
        x = x.double()
        radii = neighbour_distances(x, NEIGHBOURS)
        precise = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        alone = torch.zeros(len(x), dtype=torch.long, device=x.device)
        recalled = []
        for y, y_radii in zip(self._reference.split(CHUNK), self._radii.split(CHUNK), strict=True):
            distances = pairwise_distances(y, x)
            precise |= (distances <= y_radii[:, None]).any(0)
            within = distances <= radii
            balls = within.sum(1)
            recalled.append(balls > 0)
            alone += within[balls == 1].sum(0)
        return Overlap(precise, torch.cat(recalled), alone)


def _manifold_of(real: Real) -> Manifold:
    return Manifold(real.features)


class Precision(Metric):
    """Fraction of the samples that look like the reference."""

    name, mode, images, min_samples = "precision", "max", True, 10

    def __init__(self, real: Real) -> None:
        self._manifold = real.once(_manifold_of)

    def measure(self, generated: Generated) -> float:
        """Within third neighbours' balls."""
        return generated.once(self._manifold).precision

    def error(self, generated: Generated) -> float:
        """By bootstrap."""
        precise = generated.once(self._manifold).precise.to(generated.weights)
        return (generated.weights @ precise / len(precise)).std().item()


class Recall(Metric):
    """Fraction of the reference that the samples could have produced."""

    name, mode, images, min_samples = "recall", "max", True, 10

    def __init__(self, real: Real) -> None:
        self._manifold = real.once(_manifold_of)

    def measure(self, generated: Generated) -> float:
        """Within third neighbours' balls."""
        return generated.once(self._manifold).recall

    def error(self, generated: Generated) -> float:
        """By jackknife."""
        return generated.once(self._manifold).recall_error
