"""Metrics of generated samples against real ones: FID and others for images, distances for points."""

from gpm_tune.metrics.distances import PointMetrics
from gpm_tune.metrics.features import check_features
from gpm_tune.metrics.fid import ImageMetrics
from gpm_tune.metrics.quality import ImageQuality, PointQuality, Quality

__all__ = ["ImageMetrics", "ImageQuality", "PointMetrics", "PointQuality", "Quality", "check_features"]
