"""scikit-learn's handwritten digits: 1,797 images of 8x8 that need no download."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from gpm_tune.config import Config
from gpm_tune.data.dataset import Dataset, hold_out, pad_to

HELD_OUT = 360  # images in each of validation and test set, a fifth of all


class DigitsConfig(Config):
    """Digits padded with black, scaled to [-1, 1]; three fifths of them are for training."""

    name: Literal["digits"]
    size: Literal[16, 32] = Field(16, description="Side of the padded images.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (1, self.size, self.size)

    @property
    def validation_samples(self) -> int:
        """How many samples are held out for evaluations."""
        return HELD_OUT

    @property
    def has_files(self) -> bool:
        """They come with scikit-learn."""
        return True

    def prepare(self) -> None:
        """The images are part of scikit-learn."""

    def load(self, seed: int) -> Dataset:
        """Test images are the last ones, whatever the seed; validation images are drawn from it."""
        from sklearn.datasets import load_digits

        scaled = torch.from_numpy(load_digits().images) * (255 / 16)
        images = pad_to(scaled.round().to(torch.uint8), self.size)
        return hold_out(images[:-HELD_OUT], HELD_OUT, images[-HELD_OUT:], seed)
