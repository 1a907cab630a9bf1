"""The Fréchet distance of weighted samples from a reference, and its limit for infinitely many samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCKS = 3  # FID∞ is extrapolated from the samples in 1, 2, ..., BLOCKS parts: more are too small sooner


class GaussianFit(NamedTuple):
    """Mean μ (D,) and a factor L (D, min(m, D)) of the covariance L Lᵀ, in double precision."""

    mean: Tensor
    factor: Tensor


def fit_gaussian(samples: Tensor) -> GaussianFit:
    """Of samples (m, D), at least two."""
    samples = samples.double()
    mean = samples.mean(0)
    centred = (samples - mean) / math.sqrt(len(samples) - 1)
    return GaussianFit(mean, torch.linalg.qr(centred, mode="r").R.T)


class FrechetDistance:
    """‖μ_x - μ_y‖² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^½): squared Wasserstein-2 between Gaussian fits.

    Of features it is the FID (Heusel et al. 2017). With Σ_y = L Lᵀ and centred rows X of x, the last trace
    is the sum of the singular values of XL: no matrix is inverted or has to be of full rank, and what is
    decomposed is symmetric, which takes a fraction of the time of eigenvalues of Σ_x Σ_y.
    """

    def __init__(self, reference: GaussianFit) -> None:
        self._mean, self._factor = reference
        self._trace = self._factor.square().sum()

    def __call__(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The distances (R,) of the samples x (n, D) with each of weights (R, n), how often each counts.

        Without weights each counts once, and R is 1. Weights of a row have to sum to at least 2.
        """
        x = x.double() - self._mean
        weights = torch.ones(1, len(x)) if weights is None else weights
        projected = x @ self._factor
        return torch.stack([self._distance(x, projected, row) for row in weights.to(x)])

    def _distance(self, x: Tensor, projected: Tensor, weights: Tensor) -> Tensor:
        kept = weights > 0
        if not kept.all():
            x, projected, weights = x[kept], projected[kept], weights[kept]
        count = weights.sum()
        scale = (weights / (count - 1)).sqrt()[:, None]
        mean = weights @ x / count
        root = _singular_values((projected - weights @ projected / count) * scale).sum()
        traces = weights @ (x - mean).square().sum(1) / (count - 1) + self._trace
        return (mean.square().sum() + traces - 2 * root).clamp(min=0)


def _singular_values(a: Tensor) -> Tensor:
    gram = a.T @ a if len(a) > a.shape[1] else a @ a.T
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt()


def block_weights(samples: int) -> Tensor:
    """Weights (R, n) of 0 and 1: the samples as a whole, in 2 random parts, in 3, ..., in BLOCKS parts."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    parts = [part for count in range(1, BLOCKS + 1) for part in order.tensor_split(count)]
    weights = torch.zeros(len(parts), samples)
    for row, part in zip(weights, parts, strict=True):
        row[part] = 1
    return weights


def extrapolate(distances: Tensor) -> float:
    """FID∞ from the distances (R,) of all `block_weights` (Chong and Forsyth 2020).

    The bias of FID at N samples is proportional to 1/N: FID∞ is where a line through it meets 1/N = 0. All
    parts of one size are averaged, so that every size has seen the same samples, and their noise does not
    tilt the line.
    """
    means = [part.mean().item() for part in distances.split(list(range(1, BLOCKS + 1)))]
    return float(np.polyfit(np.arange(1, BLOCKS + 1), means, 1)[1])
