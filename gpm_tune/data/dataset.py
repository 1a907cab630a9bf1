"""A data set as tensors, and the order in which training reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpm_tune.paths import expand


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test samples: uint8 images (N, C, H, W) or float points (N, D)."""

    train: Tensor
    validation: Tensor
    test: Tensor


@runtime_checkable
class Packable(Protocol):
    """A data set of many files, for which a few stand on machines that lack them."""

    @property
    def has_files(self) -> bool:
        """Whether the files themselves are here."""

    @property
    def packed(self) -> Path:
        """Where those few are kept, in a folder by the data's fingerprint; its name tells the data set."""

    def pack(self) -> dict[str, Path]:
        """Those few, by their names there, one an .npy. Raises UserError where they cannot be made."""


def find_array(packed: Path) -> Path | None:
    """The array among the few files that stand for a data set, if they are here."""
    return min(packed.glob("*/*.npy"), default=None)


def hold_out(images: Tensor, count: int, test: Tensor, seed: int) -> Dataset:
    """So many of the images, drawn from the seed, are for validation, the others for training."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return Dataset(images[order[count:]], images[order[:count]], test)


def default_root() -> Path:
    """$GPM_TUNE_DATA, else a folder in the user's cache."""
    return expand(os.environ.get("GPM_TUNE_DATA") or Path.home() / ".cache" / "gpm-tune" / "data")


def to_float(samples: Tensor) -> Tensor:
    """What networks see: images from uint8 to [-1, 1], points as they are."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples


def pad_to(images: Tensor, side: int) -> Tensor:
    """Grey images (N, h, w) in uint8, centred on black frames (N, 1, side, side)."""
    height, width = images.shape[-2:]
    left, top = (side - width) // 2, (side - height) // 2
    frame = (left, side - width - left, top, side - height - top)
    return pad(images, frame).unsqueeze(1)


class Batches:
    """Shuffled epochs as a pure function of seed and step, so that there is no state to save.

    An epoch is a permutation without its incomplete last batch.
    """

    def __init__(self, size: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.per_epoch = size // batch_size
        self._size, self._batch_size, self._seed, self._device = size, batch_size, seed, device
        self._epoch = -1
        self._order = torch.empty(0)

    def indices(self, step: int) -> Tensor:
        """Indices (batch_size,) of the batch that training reads in its step number `step`, from 0."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            # Drawn on the CPU: the order is then the same on every device.
            rng = torch.Generator().manual_seed(self._seed * 2**32 + epoch)
            self._order = torch.randperm(self._size, generator=rng).to(self._device)
            self._epoch = epoch
        return self._order[position * self._batch_size : (position + 1) * self._batch_size]
