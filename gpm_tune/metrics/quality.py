"""How good generated samples are, in every metric and with standard errors, from features extracted once."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from gpm_tune.errors import UserError
from gpm_tune.metrics.cache import cached
from gpm_tune.metrics.distances import PointMetrics, modes_covered, pairwise_distances, sliced_wasserstein
from gpm_tune.metrics.features import FeatureExtractor, finite
from gpm_tune.metrics.frechet import FrechetDistance, block_weights, extrapolate, fit_gaussian
from gpm_tune.metrics.kid import KernelDistance
from gpm_tune.metrics.precision_recall import Manifold
from gpm_tune.metrics.resampling import bootstrap_weights, mean_over_pairs, means_between

MIN_IMAGES = 10  # that third neighbours exist, and every part of FID∞ has some
PROJECTIONS = 50  # of a resample: the directions' number hardly changes how resamples differ


class Quality(Protocol):
    """Measures generated samples against real ones.

    Standard errors are over the generated samples: how much the values would differ between draws from the
    same model, against the same real samples.
    """

    modes: ClassVar[dict[str, Literal["min", "max"]]]

    def features(self, samples: Tensor) -> Tensor:
        """What is compared, (n, d) on the CPU, of samples (n, *shape); DivergedError if not finite."""

    def measure(self, features: Tensor) -> dict[str, float]:
        """Every metric of the features (n, d) of generated samples."""

    def errors(self, features: Tensor, resamples: int, seed: int) -> dict[str, float]:
        """The standard error of every metric."""


class ImageQuality:
    """FID, KID, precision, recall and FID∞ of images in [-1, 1] against a reference set."""

    modes: ClassVar[dict[str, Literal["min", "max"]]] = {
        "fid": "min",
        "kid": "min",
        "precision": "max",
        "recall": "max",
        "fid_infinity": "min",
    }

    def __init__(
        self,
        reference: Tensor,
        features: str,
        *,
        weights: Path | None = None,
        cache: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Extract the features of the reference, or find them in the cache.

        reference: (N, C, H, W) in [-1, 1]. features: "small" or "inception", whose local weights
        file may be given. cache: a folder, shared safely between processes.
        Raises UserError where Inception's weights cannot be had, or the reference has too few images.
        """
        _check_count(reference, "the reference")
        self._device = device
        self._extractor = extract = FeatureExtractor(features, weights, device)
        file = extract.file(cache, "features", reference)
        real = cached(file, ["features"], lambda: {"features": extract(reference)})["features"].to(device)
        self._frechet = FrechetDistance(fit_gaussian(real))
        self._kernel = KernelDistance(real)
        self._manifold = Manifold(real)

    def features(self, samples: Tensor) -> Tensor:
        """The network's activations (n, d), on the CPU, of images (n, C, H, W) in [-1, 1]."""
        return self._extractor(samples).cpu()

    def measure(self, features: Tensor) -> dict[str, float]:
        """Every metric; raises UserError for fewer than 10 samples.

        FID∞ takes about five times as many samples as there are features to be meaningful: with fewer it
        may be too small, as FID then grows less than with 1/N.
        """
        _check_count(features, "the generated set")
        features = features.to(self._device)
        distances = self._frechet(features, block_weights(len(features)))
        overlap = self._manifold(features)
        return {
            "fid": distances[0].item(),
            "kid": self._kernel(features).item(),
            "precision": overlap.precision,
            "recall": overlap.recall,
            "fid_infinity": extrapolate(distances),
        }

    def errors(self, features: Tensor, resamples: int, seed: int) -> dict[str, float]:
        """By bootstrap over the generated samples; of the recall by jackknife.

        A resample has fewer different samples, so that its FID is higher: only the standard deviation over
        resamples is used, of the estimate that `measure` gives. It is too large where FID is mostly bias (n
        is small for so many features, or the distributions are the same): four times at 500 samples of 128
        features. FID∞ moves with FID, whose error is given for it.
        """
        _check_count(features, "the generated set")
        weights = bootstrap_weights(len(features), resamples, seed).to(self._device)
        features = features.to(self._device)
        overlap = self._manifold(features)
        fid = self._frechet(features, weights).std().item()
        return {
            "fid": fid,
            "kid": self._kernel(features, weights).std().item(),
            "precision": (weights @ overlap.precise.to(weights) / len(features)).std().item(),
            "recall": overlap.recall_error,
            "fid_infinity": fid,
        }


class PointQuality(PointMetrics):
    """The distances of `PointMetrics`, with standard errors."""

    def features(self, samples: Tensor) -> Tensor:
        """The points themselves (n, D), on the CPU."""
        return finite(samples).cpu()

    def measure(self, features: Tensor) -> dict[str, float]:
        """Every metric, as `PointMetrics` gives it."""
        return self(features.to(self._reference))

    def errors(self, features: Tensor, resamples: int, seed: int) -> dict[str, float]:
        """By bootstrap over the generated samples.

        A resample has fewer different samples, so that its distances are larger: only the standard
        deviation over resamples is used, of the estimate that `measure` gives. Where the distributions are
        the same, it is too large, up to twice.
        """
        x, real = features.to(self._reference), self._reference
        weights = bootstrap_weights(len(x), resamples, seed).to(x.device)
        sets = [x.repeat_interleave(row.long(), 0) for row in weights]
        values = {
            "sliced_wasserstein": torch.tensor([sliced_wasserstein(s, real, PROJECTIONS) for s in sets]),
            "energy_distance": _energies(x, real, weights),
            "frechet": FrechetDistance(fit_gaussian(real))(x, weights),
        }
        if self._means is not None:
            covered = [modes_covered(s, self._means, self._std) for s in sets]
            values["modes_covered"] = torch.tensor(covered)
        return {name: of_resamples.std().item() for name, of_resamples in values.items()}


def _energies(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Energy distances (R,) of weighted x but for the term that only y is in."""
    between = weights @ means_between(pairwise_distances, x, y).to(weights) / len(x)
    return 2 * between - mean_over_pairs(pairwise_distances, x, weights)


def _check_count(samples: Tensor, what: str) -> None:
    if len(samples) < MIN_IMAGES:
        raise UserError(f"{what} has {len(samples)} images: quality needs at least {MIN_IMAGES}")
