"""What a metric is: generated samples against real ones, as one number with its standard error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from gpm_tune.errors import UserError
from gpm_tune.metrics.cache import cached
from gpm_tune.metrics.frechet import GaussianFit, fit_gaussian

Mode = Literal["min", "max"]
T = TypeVar("T")


class Extract(Protocol):
    """What samples are compared by: activations of a network, or of points themselves."""

    def __call__(self, samples: Tensor, /) -> Tensor:
        """Features (n, d), on the device, of samples (n, *shape); DivergedError if not finite."""

    @property
    def device(self) -> torch.device:
        """Where they are computed."""

    def key(self, samples: Tensor, /) -> str | None:
        """Identifies samples, and what their features are; None for features that need not be kept."""


class Part:
    """Real samples of one part of the data, and what is kept of them."""

    def __init__(self, samples: Tensor, extract: Extract, cache: Path | None) -> None:
        self._samples, self._extract, self._cache = samples, extract, cache

    @cached_property
    def features(self) -> Tensor:
        """(n, d)."""
        return self._kept("features", ["features"], lambda: {"features": self._extracted})["features"]

    @cached_property
    def gaussian(self) -> GaussianFit:
        """Of the features, which the cache need not have for it."""
        fit = self._kept("fid", GaussianFit._fields, lambda: fit_gaussian(self._extracted)._asdict())
        return GaussianFit(**fit)

    @cached_property
    def _extracted(self) -> Tensor:
        return self._extract(self._samples)

    @cached_property
    def _key(self) -> str | None:
        return self._extract.key(self._samples)

    def _kept(
        self, what: str, names: Sequence[str], compute: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors from the cache, which has them from now on."""
        file = None
        if self._cache is not None and self._key is not None:
            file = self._cache / f"{what}-{self._key}.safetensors"
        found = cached(file, names, compute)
        return {name: found[name].to(self._extract.device) for name in names}


class Real:
    """Real samples, with which others are compared. What metrics need of them is computed once."""

    def __init__(
        self,
        reference: Tensor,
        extract: Extract,
        *,
        training: Callable[[], Tensor] | None = None,
        cache: Path | None = None,
        means: Tensor | None = None,
        std: float = 0.0,
    ) -> None:
        """reference: (m, *shape), images in [-1, 1].

        training: gives the samples (N, *shape) of training; None where the reference is of them.
        cache: a folder, shared safely between processes. means, std: (M, D) the modes of points, if known.
        """
        self.extract = extract
        self.means, self.std = means, std
        self._reference, self._cache, self._training = Part(reference, extract, cache), cache, training
        self._count = len(reference)
        self._made: dict[Any, Any] = {}

    def __len__(self) -> int:
        return self._count

    def once(self, make: Callable[[Real], T]) -> T:
        """What several metrics make of it."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    @property
    def features(self) -> Tensor:
        """Of the reference: (m, d)."""
        return self._reference.features

    @property
    def gaussian(self) -> GaussianFit:
        """Of the reference's features."""
        return self._reference.gaussian

    def training_features(self) -> Tensor:
        """Of the samples of training: (N, d). Raises UserError where the reference is of them."""
        if self._training is None:
            raise UserError(
                "training samples are compared with held-out ones, and not with themselves\n"
                "help: choose another split than train, or other metrics than memorization_gap"
            )
        return Part(self._training(), self.extract, self._cache).features


class Generated:
    """Features of generated samples. What several metrics make of them is computed once."""

    def __init__(self, x: Tensor, weights: Tensor | None = None) -> None:
        """x: (n, d). weights: (R, n), how often each is in each resample of a bootstrap."""
        self.x = x
        self._weights = weights
        self._made: dict[Any, Any] = {}

    @property
    def weights(self) -> Tensor:
        """Of the bootstrap: (R, n)."""
        assert self._weights is not None, "standard errors are asked for"
        return self._weights

    def once(self, make: Callable[[Tensor], T]) -> T:
        """What several metrics make of the features."""
        return self._once(make, self.x)

    def resampled(self, make: Callable[[Tensor, Tensor], T]) -> T:
        """What several metrics make of the features and the weights."""
        return self._once(make, self.x, self.weights)

    def _once(self, make: Callable[..., T], *arguments: Tensor) -> T:
        key = make, len(arguments)
        if key not in self._made:
            self._made[key] = make(*arguments)
        made: T = self._made[key]
        return made


METRICS: dict[str, type[Metric]] = {}
"""All of them, by name."""


class Metric(ABC):
    """One number that compares generated samples with real ones; a subclass with a name can be asked for."""

    name: ClassVar[str]
    mode: ClassVar[Mode]  # which values are better
    images: ClassVar[bool] = False  # whether it compares images, by a network's features
    points: ClassVar[bool] = False  # whether it compares points, in data space
    needs_modes: ClassVar[bool] = False  # whether the modes of the points have to be known
    min_samples: ClassVar[int] = 2  # of each set

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            METRICS[cls.name] = cls

    @abstractmethod
    def __init__(self, real: Real) -> None:
        """Take what it needs of the real samples."""

    @abstractmethod
    def measure(self, generated: Generated) -> float:
        """Its value."""

    @abstractmethod
    def error(self, generated: Generated) -> float:
        """The standard error over the generated samples.

        A bootstrap's resample has fewer different samples, so that distances of it are larger: only the
        standard deviation over resamples is used, of the estimate that `measure` gives.
        """
