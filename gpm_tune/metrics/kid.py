"""The kernel distance of weighted samples from a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_tune.metrics.metric import Generated, Metric, Real
from gpm_tune.metrics.resampling import mean_over_pairs, means_between


class KernelDistance:
    """MMD² with the kernel (x·y/D + 1)³: of features, the KID (Bińkowski et al. 2018).

    Without bias, as all pairs of different samples are averaged: of equal distributions it is 0 on average,
    and negative as often as not.
    """

    def __init__(self, reference: Tensor) -> None:
        """reference: y (m, D)."""
        self._reference = reference.double()
        self._within = mean_over_pairs(_kernel, self._reference, _once(self._reference))

    def __call__(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The distances (R,) of the samples x (n, D) with each of weights (R, n); once each without."""
        x = x.double()
        weights = _once(x) if weights is None else weights.to(x)
        between = weights @ means_between(_kernel, x, self._reference) / weights.sum(1)
        return mean_over_pairs(_kernel, x, weights) - 2 * between + self._within


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _once(x: Tensor) -> Tensor:
    return torch.ones(1, len(x)).to(x)


class Kid(Metric):
    """Kernel Inception Distance: MMD² of features, without bias."""

    name, mode, images = "kid", "min", True

    def __init__(self, real: Real) -> None:
        self._distance = KernelDistance(real.features)

    def measure(self, generated: Generated) -> float:
        """Negative as often as not where the distributions are the same."""
        return self._distance(generated.x).item()

    def error(self, generated: Generated) -> float:
        """By bootstrap."""
        return self._distance(generated.x, generated.weights).std().item()
