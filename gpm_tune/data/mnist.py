"""MNIST, from torchvision's files."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, Literal

from filelock import FileLock
from pydantic import Field
from torch import Tensor

from gpm_tune.config import Config
from gpm_tune.data.dataset import Dataset, default_root, hold_out, pad_to
from gpm_tune.errors import UserError, first_line
from gpm_tune.paths import LocalPath, expand

SIDE = 32
TRAINING_IMAGES = 60_000


class MNISTConfig(Config):
    """MNIST padded to 32x32 and scaled to [-1, 1]; a tenth of the training images is held out."""

    paper: ClassVar[str] = "appendix D.1"

    name: Literal["mnist"]
    root: LocalPath | None = Field(
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
        return self._root / "MNIST"

    @property
    def _root(self) -> Path:
        return expand(self.root) if self.root else default_root()

    def prepare(self) -> None:
        """Make sure that the files are there, downloading them if need be: by one process, others wait.

        Raises UserError where they are not and cannot be downloaded.
        """
        root = self._root
        is_fixed = self.files.exists() and not os.access(root, os.W_OK)  # nobody writes there
        try:
            root.mkdir(parents=True, exist_ok=True)
            with nullcontext() if is_fixed else FileLock(f"{self.files}.lock"):
                self._open(train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"MNIST is not in {root} and could not be downloaded ({first_line(error)}). Put the four "
                f"files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
                f"t10k-labels-idx1-ubyte, unzipped, into {root / 'MNIST' / 'raw'}, or name the "
                "folder that has them in GPM_TUNE_DATA or in the key data.root."
            ) from None

    def load(self, seed: int) -> Dataset:
        """The images; which of the training ones are held out for validation follows the seed."""
        self.prepare()
        rest, test = (pad_to(self._open(train=train), SIDE) for train in (True, False))
        return hold_out(rest, len(rest) // 10, test, seed)

    def _open(self, *, train: bool, download: bool = False) -> Tensor:
        from torchvision.datasets import MNIST

        images: Tensor = MNIST(str(self._root), train=train, download=download).data
        return images
