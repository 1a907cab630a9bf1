"""MNIST, from torchvision's files."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, Literal

from filelock import FileLock
from pydantic import Field
from torch import Tensor

from gpm_tune.config import Config
from gpm_tune.data.dataset import Dataset, default_root, hold_out, pad_to
from gpm_tune.errors import UserError, damage, first_line
from gpm_tune.paths import LocalPath, expand

SIDE = 32
TRAINING_IMAGES = 60_000
SHAPES = {"images-idx3": (28, 28), "labels-idx1": ()}  # of what each kind of file holds many of


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
    def has_files(self) -> bool:
        """Whether all of them are here."""
        return len(list(self._present())) == 2 * len(SHAPES)

    @property
    def _root(self) -> Path:
        return expand(self.root) if self.root else default_root()

    def prepare(self) -> None:
        """Make sure that the files are there, downloading them if need be: by one process, others wait.

        Raises UserError where they are not and cannot be downloaded, or are damaged or exchanged.
        """
        root = self._root
        is_fixed = self.files.exists() and not os.access(root, os.W_OK)  # nobody writes there
        try:
            root.mkdir(parents=True, exist_ok=True)
            with nullcontext() if is_fixed else FileLock(f"{self.files}.lock"):
                self._check_files()  # within the lock: outside of it they may be half downloaded
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

    def _check_files(self) -> None:
        """Raise UserError where one that is there is not what its name says, or they do not fit together."""
        counts = {file: _count(file, shape) for file, shape in self._present()}
        for file, count in counts.items():
            if count is None:
                raise UserError(damage(self.name, f"{file} is not what MNIST has under this name"))
        by_name = {file.name: count or 0 for file, count in counts.items()}
        if len(by_name) < 2 * len(SHAPES):
            return
        train, test = ([by_name[f"{split}-{kind}-ubyte"] for kind in SHAPES] for split in ("train", "t10k"))
        if len(set(train)) > 1 or len(set(test)) > 1 or not train[0] >= test[0] > 0:
            counted = (
                f"{self.files / 'raw'} has {train[0]:,} images and {train[1]:,} labels for training, "
                f"{test[0]:,} and {test[1]:,} for tests"
            )
            raise UserError(damage(self.name, counted))

    def _present(self) -> Iterator[tuple[Path, tuple[int, ...]]]:
        for split in ("train", "t10k"):
            for kind, shape in SHAPES.items():
                file = self.files / "raw" / f"{split}-{kind}-ubyte"
                if file.exists():
                    yield file, shape

    def _open(self, *, train: bool, download: bool = False) -> Tensor:
        from torchvision.datasets import MNIST

        images: Tensor = MNIST(str(self._root), train=train, download=download).data
        return images


def _count(file: Path, shape: tuple[int, ...]) -> int | None:
    """How many arrays of bytes of a shape an IDX file holds; None where it is no whole one of these."""
    if not file.is_file():  # a pipe, which would be read for ever
        return None
    with file.open("rb") as content:
        head = content.read(4 * (2 + len(shape)))
    count = int.from_bytes(head[4:8], "big")
    expected = struct.pack(f">HBB{1 + len(shape)}I", 0, 8, 1 + len(shape), count, *shape)  # 8: unsigned bytes
    is_whole = file.stat().st_size == len(expected) + count * math.prod(shape)
    return count if head == expected and is_whole else None
