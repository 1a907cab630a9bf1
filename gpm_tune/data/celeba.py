"""CelebA: faces of 64x64, from torchvision's layout of files, cached as one array on disk."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from gpm_tune.config import Config
from gpm_tune.data.dataset import Dataset, default_root, find_array
from gpm_tune.data.fingerprint import digest, list_files
from gpm_tune.data.images import decode_all, mapped
from gpm_tune.errors import UserError
from gpm_tune.paths import LocalPath, expand

SIDE = 64
PARTITION = "list_eval_partition.txt"
SPLITS = ("0", "1", "2")  # train, validation, test in list_eval_partition.txt


class CelebAConfig(Config):
    """CelebA centre-cropped, resized to 64x64, scaled to [-1, 1], in its own partition.

    The images are decoded once, into one array beside them, and again when they have changed. Where array and
    partition are alone, without the images, as on a cluster's nodes, they are taken as they are.
    """

    paper: ClassVar[str] = "appendix D.1"

    name: Literal["celeba"]
    root: LocalPath | None = Field(
        None,
        description="Folder that holds celeba/; null for $GPM_TUNE_DATA, else ~/.cache/gpm-tune/data.",
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (3, SIDE, SIDE)

    @property
    def validation_samples(self) -> int:
        """How many samples the published partition holds out for evaluations."""
        return 19_867

    @property
    def files(self) -> Path:
        """The folder of its files, or of what has come in their place."""
        array = None if self.has_files else find_array(self.packed)
        return self._root / "celeba" if array is None else array.parent

    @property
    def has_files(self) -> bool:
        """Whether partition and images, or their array, were put here."""
        return (self._root / "celeba" / PARTITION).exists()

    @property
    def packed(self) -> Path:
        """Where partition and array are that have come in place of the images."""
        return self._root / "packed" / f"celeba-{SIDE}"

    def pack(self) -> dict[str, Path]:
        """The partition and the array. Raises UserError as `prepare` does."""
        images = self._images([name for split in self._partition() for name in split])
        return {PARTITION: self.files / PARTITION, f"gpm_tune_{SIDE}.npy": Path(str(images.filename))}

    @property
    def _root(self) -> Path:
        return expand(self.root) if self.root else default_root()

    def prepare(self) -> None:
        """Decode, crop and resize all images once into celeba/gpm_tune_64-DIGEST.npy.

        Raises UserError where images or partition are missing.
        """
        self._images([name for split in self._partition() for name in split])

    def load(self, seed: int) -> Dataset:
        """The partition that the data set comes with, whatever the seed; images are read when needed."""
        del seed
        splits = self._partition()
        images = self._images([name for split in splits for name in split])
        train, validation, test = torch.from_numpy(images).split([len(split) for split in splits])
        return Dataset(train, validation, test)

    def _partition(self) -> list[list[str]]:
        """The file names of the training, validation and test images."""
        file = self.files / PARTITION
        if not file.is_file():
            raise UserError(
                f"CelebA is not in {self.files}\nhelp: put its file list_eval_partition.txt and its folder "
                "img_align_celeba, unzipped, there (they are not downloaded: their host limits it), or "
                "name the folder that holds celeba/ in GPM_TUNE_DATA or in the key data.root"
            )
        lines = file.read_text(errors="replace").splitlines()
        rows = [line.split() for line in lines if line.strip()]
        if any(len(row) != 2 or row[1] not in SPLITS for row in rows):
            raise UserError(f"{file}: expected lines such as `000001.jpg 0`")
        splits = [sorted(name for name, split in rows if split == wanted) for wanted in SPLITS]
        if not all(splits):
            raise UserError(f"{file}: expected images for training (0), validation (1) and tests (2)")
        return splits

    def _images(self, names: list[str]) -> np.memmap:
        """The images of these files, (N, 3, 64, 64) in uint8, mapped into memory copy-on-write."""
        folder = self.files / "img_align_celeba"
        present = {file.name: file for file in list_files(folder)}
        array = self.files / f"gpm_tune_{SIDE}-{digest([present.get(name) for name in names])}.npy"
        kept = sorted(self.files.glob(f"gpm_tune_{SIDE}*.npy"))
        if kept and not present:
            array = kept[0]

        def write(partial: Path) -> None:
            missing = [name for name in names if name not in present]
            if missing:
                raise UserError(
                    f"CelebA: {len(missing)} of {len(names)} images are not in {folder}, "
                    f"the first: {missing[0]}"
                )
            decode_all([folder / name for name in names], 3, SIDE, partial)
            for file in kept:  # of what the images were before
                if file != array:
                    file.unlink(missing_ok=True)

        return mapped(array, (len(names), *self.shape), write)
