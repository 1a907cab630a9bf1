"""Metrics of generated samples against real ones: FID and others for images, distances for points."""

from gpm_tune.metrics.distances import PointMetrics
from gpm_tune.metrics.features import check_features
from gpm_tune.metrics.fid import ImageMetrics
from gpm_tune.metrics.quality import ImageQuality, PointQuality, Quality

# Of every metric, whichever kind of data it is for: whether less or more is better.
MODES = ImageQuality.modes | PointQuality.modes

__all__ = [
    "MODES",
    "ImageMetrics",
    "ImageQuality",
    "PointMetrics",
    "PointQuality",
    "Quality",
    "check_features",
]
