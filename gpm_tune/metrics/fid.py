"""Fréchet Inception Distance, with the statistics of the real images cached on disk."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpm_tune.metrics.cache import cached
from gpm_tune.metrics.features import FeatureExtractor
from gpm_tune.metrics.frechet import FrechetDistance, GaussianFit, fit_gaussian


class ImageMetrics:
    """FID of images in [-1, 1] against a reference set (Heusel et al. 2017)."""

    modes: ClassVar[dict[str, Literal["min", "max"]]] = {"fid": "min"}

    def __init__(
        self,
        reference: Tensor,
        features: str,
        *,
        weights: Path | None = None,
        cache: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Compute the statistics of the reference, or find them in the cache.

        reference: (N, C, H, W) in [-1, 1]. features: "small" or "inception", whose local weights
        file may be given. cache: a folder, shared safely between processes.
        Raises UserError where Inception's weights cannot be had.
        """
        self._extractor = extract = FeatureExtractor(features, weights, device)
        file = extract.file(cache, "fid", reference)
        fit = cached(file, GaussianFit._fields, lambda: fit_gaussian(extract(reference))._asdict())
        self._distance = FrechetDistance(GaussianFit(fit["mean"].to(device), fit["factor"].to(device)))

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """{"fid": …} of at least two samples (n, C, H, W); raises DivergedError if not finite."""
        return {"fid": self._distance(self._extractor(samples)).item()}
