"""Fréchet Inception Distance, by torchmetrics, with the statistics of the real images cached on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpm_tune.errors import DivergedError
from gpm_tune.metrics.features import fingerprint, inception_features, small_features

BATCH = 500
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

        network = small_features() if features == "small" else inception_features(weights)
        self._integer_input = features == "inception"
        self._fid = FrechetInceptionDistance(network, reset_real_features=False).to(device)
        self._device = device
        key = hashlib.sha256(features.encode() + fingerprint(network).encode())
        key.update(str(tuple(reference.shape)).encode() + _to_bytes(reference).cpu().numpy().tobytes())
        file = cache / f"fid-{features}-{key.hexdigest()[:32]}.safetensors" if cache else None
        if not (file and self._load(file)):
            self._update(reference, real=True)
            if file:
                self._store(file)

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """{"fid": …} of at least two samples (n, C, H, W); raises DivergedError if not finite."""
        if not torch.isfinite(samples).all():
            raise DivergedError("the samples were not finite")
        self._fid.reset()
        self._update(samples, real=False)
        return {"fid": max(0.0, float(self._fid.compute()))}

    def _update(self, images: Tensor, *, real: bool) -> None:
        for batch in images.split(BATCH):
            self._fid.update(self._prepare(batch.to(self._device)), real=real)

    def _prepare(self, images: Tensor) -> Tensor:
        """What the feature network takes: bytes in three channels, or [0, 1] for the small one."""
        if self._integer_input:
            return _to_bytes(images).expand(-1, 3, -1, -1)
        return images.clamp(-1, 1) / 2 + 0.5

    def _load(self, file: Path) -> bool:
        """Take the statistics from a file; False where there is none, or it is damaged."""
        try:
            statistics = load_file(file, str(self._device))
            tensors = [statistics[name] for name in STATISTICS]
        except (OSError, KeyError, SafetensorError):
            return False
        for name, tensor in zip(STATISTICS, tensors, strict=True):
            setattr(self._fid, name, tensor)
        return True

    def _store(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        statistics: dict[str, Any] = {name: getattr(self._fid, name).cpu() for name in STATISTICS}
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as partial:
            pass
        save_file(statistics, partial.name)
        os.replace(partial.name, file)  # noqa: PTH105 (atomic: readers see all of it or nothing)


def _to_bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
