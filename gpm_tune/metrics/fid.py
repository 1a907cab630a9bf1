"""FID, the Fréchet distance of features, and FID∞; of points themselves, `frechet`."""

from __future__ import annotations

import torch

from gpm_tune.metrics.frechet import FrechetDistance, block_weights, extrapolate
from gpm_tune.metrics.metric import Generated, Metric, Real


def _distance_from(real: Real) -> FrechetDistance:
    return FrechetDistance(real.gaussian)


class Fid(Metric):
    """Fréchet Inception Distance (Heusel et al. 2017), of whatever network's features.

    Its standard error is too large where FID is mostly bias (n is small for so many features, or the
    distributions are the same): four times at 500 samples of 128 features.
    """

    name, mode, images = "fid", "min", True

    def __init__(self, real: Real) -> None:
        self._distance = real.once(_distance_from)

    def measure(self, generated: Generated) -> float:
        """Of at least two samples."""
        return generated.once(self._distance).item()

    def error(self, generated: Generated) -> float:
        """By bootstrap."""
        return generated.resampled(self._distance).std().item()


class FidInfinity(Fid):
    """FID of infinitely many samples, by extrapolation (Chong and Forsyth 2020).

    It takes about five times as many samples as there are features to be meaningful: with fewer it may be too
    small, as FID then grows less than with 1/N. It moves with FID, whose standard error is given for it.
    """

    name, min_samples = "fid_infinity", 10

    def measure(self, generated: Generated) -> float:
        """From the FID of all samples, and of their parts."""
        parts = self._distance(generated.x, block_weights(len(generated.x))[1:])
        return extrapolate(torch.cat([generated.once(self._distance), parts]))


class Frechet(Fid):
    """Squared Wasserstein-2 between Gaussian fits, of points."""

    name, images, points = "frechet", False, True
