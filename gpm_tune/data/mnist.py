"""MNIST, from torchvision's files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gpm_tune.config import Config
from gpm_tune.data.dataset import Dataset, default_root, pad_to
from gpm_tune.errors import UserError

SIDE = 32
TRAINING_IMAGES = 60_000


class MNISTConfig(Config):
    """MNIST padded to 32x32 and scaled to [-1, 1]; a tenth of the training images is held out."""

    paper: ClassVar[str] = "appendix D.1"

    name: Literal["mnist"]
    root: Path | None = Field(
        None,
        description="Folder that holds (or gets) MNIST/raw; null for $GPM_TUNE_DATA, "
        "else ~/.cache/gpm-tune/data.",
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (1, SIDE, SIDE)

    @property
    def validation_samples(self) -> int:
        """How many samples are held out for evaluations."""
        return TRAINING_IMAGES // 10

    @property
    def files(self) -> Path:
        """The folder of its files."""
        return (self.root or default_root()) / "MNIST"

    def prepare(self) -> None:
        """Make sure that the files are there, downloading them if need be.

        Raises UserError where they are not and cannot be downloaded.
        """
        root = self.root or default_root()
        try:
            self._open(root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"MNIST is not in {root} and could not be downloaded ({error}). Put the four files "
                f"train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
                f"t10k-labels-idx1-ubyte, unzipped, into {root / 'MNIST' / 'raw'}, or name the "
                "folder that has them in GPM_TUNE_DATA or in the key data.root."
            ) from None

    def load(self, seed: int) -> Dataset:
        """The images; which of the training ones are held out for validation follows the seed."""
        self.prepare()
        root = self.root or default_root()
        images = pad_to(self._open(root, train=True), SIDE)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        held_out = len(images) // 10
        return Dataset(
            images[order[held_out:]],
            images[order[:held_out]],
            pad_to(self._open(root, train=False), SIDE),
        )

    @staticmethod
    def _open(root: Path, *, train: bool, download: bool = False) -> Tensor:
        from torchvision.datasets import MNIST

        images: Tensor = MNIST(str(root), train=train, download=download).data
        return images
