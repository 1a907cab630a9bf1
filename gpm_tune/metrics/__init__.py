"""Metrics of generated samples against real ones: FID for images, distances in data space for points."""

from gpm_tune.metrics.distances import PointMetrics
from gpm_tune.metrics.features import check_features
from gpm_tune.metrics.fid import ImageMetrics

__all__ = ["ImageMetrics", "PointMetrics", "check_features"]
