"""Statistics of weighted samples: one pass over the samples serves all resamples of a bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpm_tune.errors import UserError
from gpm_tune.metrics.distances import CHUNK

MIN_SAMPLES = 10


def bootstrap_weights(samples: int, resamples: int, seed: int) -> Tensor:
    """How often each of n samples is in each of R resamples with replacement: (R, n), in float64.

    Raises UserError for fewer than 2 resamples, or 10 samples, of which a resample may be one sample alone.
    """
    if resamples < 2:
        raise UserError(f"standard errors need at least 2 resamples, not {resamples}")
    if samples < MIN_SAMPLES:
        raise UserError(
            f"standard errors need at least {MIN_SAMPLES} samples, not {samples}: raise --samples, or leave "
            "--resamples out"
        )
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(samples, (resamples, samples), generator=rng)
    counts = torch.zeros(resamples, samples, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def mean_over_pairs(pairwise: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean (R,) of a symmetric function over pairs of different samples: a U-statistic.

    pairwise: (a, D), (b, D) -> (a, b). x: (n, D); weights: (R, n).
    """
    total = torch.zeros(len(weights), dtype=weights.dtype, device=weights.device)
    for start in range(0, len(x), CHUNK):
        values = pairwise(x[start : start + CHUNK], x).to(weights)
        values.diagonal(start).zero_()
        total += (weights[:, start : start + CHUNK] * (weights @ values.T)).sum(1)
    return total / (weights.sum(1).square() - weights.square().sum(1))


def means_between(pairwise: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The mean (n,) of a function over all y (m, D), for each of x (n, D)."""
    return torch.cat([pairwise(chunk, y).mean(1) for chunk in x.split(CHUNK)])


def jackknife_error(losses: Tensor) -> float:
    """The standard error of a statistic by how much it loses (n,) where each of n samples is left out."""
    return ((len(losses) - 1) * losses.double().var(correction=0)).sqrt().item()
