"""Five Gaussians on a circle: the paper's 2-D data."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gpm_tune.config import Config
from gpm_tune.data.dataset import Dataset
from gpm_tune.data.fingerprint import digest


class GaussiansConfig(Config):
    """Equal mixture of isotropic 2-D Gaussians, their means evenly spaced on a circle."""

    paper: ClassVar[str] = "appendices C.6, D.1"

    name: Literal["gaussians"]
    modes: int = Field(5, ge=1, description="Number of Gaussians.")
    radius: float = Field(3.0, ge=0, description="Radius of the circle of means.")
    std: float = Field(0.5, gt=0, description="Standard deviation of each Gaussian.")
    samples: int = Field(500_000, ge=2, description="Independent samples per split.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (2,)

    @property
    def means(self) -> Tensor:
        """The modes: (modes, 2)."""
        angles = torch.arange(self.modes) * (2 * math.pi / self.modes)
        return self.radius * torch.stack([angles.cos(), angles.sin()], dim=1)

    @property
    def validation_samples(self) -> int:
        """How many samples are held out for evaluations."""
        return self.samples

    def prepare(self) -> None:
        """Nothing has to be on disk."""

    def load(self, seed: int) -> Dataset:
        """The three splits, drawn from the seed."""
        rng = torch.Generator().manual_seed(seed)
        return Dataset(*(self._draw(rng) for _ in range(3)))

    def fingerprint(self) -> str:
        """Of what the samples are drawn from: drawn on another processor they differ in their last bits."""
        return digest(self.model_dump_json())

    def _draw(self, rng: torch.Generator) -> Tensor:
        mode = torch.randint(self.modes, (self.samples,), generator=rng)
        return self.means[mode] + self.std * torch.randn(self.samples, 2, generator=rng)
