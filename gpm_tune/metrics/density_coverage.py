"""Density and coverage of samples against a reference (Naeem et al. 2020).

Only balls about real points count: a sample far from all others, whose own ball is large, deceives neither.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gpm_tune.metrics.distances import CHUNK, neighbour_distances, pairwise_distances
from gpm_tune.metrics.metric import Generated, Metric, Real
from gpm_tune.metrics.resampling import jackknife_error

NEIGHBOURS = 5


class Contents(NamedTuple):
    """What samples are in the balls about a reference's points: each up to its fifth neighbour."""

    balls: Tensor  # (n,): how many balls a sample is in
    covered: Tensor  # (m,): whether a ball has a sample
    alone: Tensor  # (n,): balls that have this sample and no other

    @property
    def density(self) -> float:
        """Balls that a sample is in, on average, by how many a point of the reference is expected in.

        1 on average where the distributions are the same; above 1 where samples keep to dense regions.
        """
        return self.balls.double().mean().item() / NEIGHBOURS

    @property
    def coverage(self) -> float:
        """Fraction of the balls that have a sample.

        Of N real and N generated points of one distribution it is 1 - (N-1)…(N-k) / ((2N-1)…(2N-k)) on
        average, which is about 1 - 2⁻ᵏ: 0.97.
        """
        return self.covered.double().mean().item()


class Balls:
    """The balls about a reference's points."""

    def __init__(self, reference: Tensor) -> None:
        """reference: (m, D), of more than five points."""
        self._reference = reference.double()
        self._radii = neighbour_distances(self._reference, NEIGHBOURS)

    def __call__(self, x: Tensor) -> Contents:
        """Their contents, of samples x (n, D)."""
        x = x.double()
        balls, alone = (torch.zeros(len(x), dtype=torch.long, device=x.device) for _ in range(2))
        covered = []
        for y, radii in zip(self._reference.split(CHUNK), self._radii.split(CHUNK), strict=True):
            within = pairwise_distances(y, x) <= radii[:, None]
            counts = within.sum(1)
            balls += within.sum(0)
            covered.append(counts > 0)
            alone += within[counts == 1].sum(0)
        return Contents(balls, torch.cat(covered), alone)


def _balls_about(real: Real) -> Balls:
    return Balls(real.features)


class Density(Metric):
    """How densely samples lie where the reference does; above 1 where they are too alike."""

    name, mode, images, min_samples = "density", "max", True, 10

    def __init__(self, real: Real) -> None:
        self._balls = real.once(_balls_about)

    def measure(self, generated: Generated) -> float:
        """Within fifth neighbours' balls."""
        return generated.once(self._balls).density

    def error(self, generated: Generated) -> float:
        """By bootstrap."""
        balls = generated.once(self._balls).balls.to(generated.weights)
        return (generated.weights @ balls / len(balls) / NEIGHBOURS).std().item()


class Coverage(Metric):
    """Fraction of the reference that has a sample nearby."""

    name, mode, images, min_samples = "coverage", "max", True, 10

    def __init__(self, real: Real) -> None:
        self._balls = real.once(_balls_about)

    def measure(self, generated: Generated) -> float:
        """Within fifth neighbours' balls."""
        return generated.once(self._balls).coverage

    def error(self, generated: Generated) -> float:
        """By jackknife: never too small on average (Efron and Stein 1981); too large, up to twice."""
        contents = generated.once(self._balls)
        return jackknife_error(contents.alone / len(contents.covered))
