"""How good generated samples are, by the metrics that are asked for, from features extracted once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gpm_tune.errors import UserError
from gpm_tune.metrics.features import finite
from gpm_tune.metrics.metric import METRICS, Generated, Real
from gpm_tune.metrics.resampling import bootstrap_weights


class Points:
    """Points are compared in data space: they are their own features."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def __call__(self, samples: Tensor) -> Tensor:
        """The points (n, D) themselves; DivergedError if they are not finite."""
        return finite(samples).to(self.device)

    def key(self, samples: Tensor) -> None:
        """None: they need not be kept."""


class Quality:
    """Measures generated samples against real ones: in training, and in `evaluate`.

    Standard errors are over the generated samples: how much the values would differ between draws from the
    same model, against the same real samples.
    """

    def __init__(self, metrics: Iterable[str], real: Real) -> None:
        """Compute what these metrics need of the real samples, or find it in the cache.

        Raises UserError where there are too few.
        """
        self.metrics = tuple(metrics)
        self._extract = real.extract
        self._check_count(len(real), "the reference")
        self._members = [METRICS[name](real) for name in self.metrics]

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """Every metric of samples (n, *shape), images in [-1, 1]; DivergedError if they are not finite."""
        return self.measure(self._extract(samples))

    def features(self, samples: Tensor) -> Tensor:
        """What is compared, (n, d) on the CPU, of samples (n, *shape); DivergedError if not finite."""
        return self._extract(samples).cpu()

    def measure(self, features: Tensor) -> dict[str, float]:
        """Every metric of features (n, d) of generated samples. Raises UserError where they are too few."""
        self._check_count(len(features), "the generated set")
        generated = Generated(features.to(self._extract.device))
        return {m.name: m.measure(generated) for m in self._members}

    def errors(self, features: Tensor, resamples: int, seed: int) -> dict[str, float]:
        """The standard error of every metric. Raises UserError for too few samples or resamples."""
        self._check_count(len(features), "the generated set")
        device = self._extract.device
        weights = bootstrap_weights(len(features), resamples, seed).to(device)
        generated = Generated(features.to(device), weights)
        return {m.name: m.error(generated) for m in self._members}

    def _check_count(self, count: int, what: str) -> None:
        for name in self.metrics:
            if count < (least := METRICS[name].min_samples):
                raise UserError(f"{what} has {count} samples: {name} needs at least {least}")
