"""Metrics of generated samples against real ones, one file each: FID and others for images and points."""

from importlib import import_module
from pkgutil import iter_modules

from gpm_tune.metrics.features import FeatureExtractor, check_features
from gpm_tune.metrics.metric import METRICS, Metric, Mode, Real
from gpm_tune.metrics.quality import Points, Quality

for _module in iter_modules(__path__):  # whichever define metrics; one is a program
    if _module.name != "train_small_features":
        import_module(f"{__name__}.{_module.name}")

MODES = {name: metric.mode for name, metric in METRICS.items()}
"""Of every metric: whether less or more is better."""
DEFAULTS = {
    "images": ("fid",),
    "points": ("sliced_wasserstein", "energy_distance", "frechet", "modes_covered"),
}
"""What is measured where an experiment does not say, of each kind of data; the first is the objective."""


def available(*, images: bool, modes_known: bool) -> dict[str, Mode]:
    """The metrics of a kind of data, defaults first, each with its mode."""
    kind = "images" if images else "points"
    names = dict.fromkeys([*DEFAULTS[kind], *sorted(METRICS)])
    found = {name: METRICS[name] for name in names if getattr(METRICS[name], kind)}
    return {name: metric.mode for name, metric in found.items() if modes_known or not metric.needs_modes}


__all__ = [
    "DEFAULTS",
    "METRICS",
    "MODES",
    "FeatureExtractor",
    "Metric",
    "Mode",
    "Points",
    "Quality",
    "Real",
    "available",
    "check_features",
]
