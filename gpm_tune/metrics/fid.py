"""Fréchet Inception Distance, by torchmetrics, with the statistics of the real images cached on disk."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpm_tune.errors import DivergedError
from gpm_tune.metrics.cache import load_tensors, store_tensors
from gpm_tune.metrics.features import FeatureExtractor

STATISTICS = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")


class ImageMetrics:
    """FID of images in [-1, 1] against a reference set (Heusel et al. 2017)."""

    directions: ClassVar[dict[str, Literal["min", "max"]]] = {"fid": "min"}

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
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._extractor = FeatureExtractor(features, weights, device)
        network = self._extractor.network
        self._fid = FrechetInceptionDistance(network, reset_real_features=False).to(device)
        file = cache / f"fid-{self._extractor.key(reference)}.safetensors" if cache else None
        if statistics := load_tensors(file, STATISTICS) if file else None:
            for name, tensor in statistics.items():
                setattr(self._fid, name, tensor.to(device))
            return
        self._update(reference, real=True)
        if file:
            store_tensors(file, {name: getattr(self._fid, name) for name in STATISTICS})

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """{"fid": …} of at least two samples (n, C, H, W); raises DivergedError if not finite."""
        if not torch.isfinite(samples).all():
            raise DivergedError("the samples were not finite")
        self._fid.reset()
        self._update(samples, real=False)
        return {"fid": max(0.0, float(self._fid.compute()))}

    def _update(self, images: Tensor, *, real: bool) -> None:
        for batch in self._extractor.batches(images):
            self._fid.update(batch, real=real)
