"""Data sets in files, small and quickly replaced by others under the same names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gpm_tune.data import CelebAConfig, Dataset, FolderConfig, MNISTConfig

PICTURES = 120

Write = Callable[[Path, int], object]


def write_pictures(root: Path, content: int) -> FolderConfig:
    """Coloured noise, the darker the higher its content; of the same size in bytes."""
    rng = np.random.default_rng(content)
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(PICTURES):
        pixels = rng.integers(0, 256 // content, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{number}.bmp")
    return FolderConfig(name="folder", root=root / "pictures", size=16)


def write_mnist(root: Path, content: int) -> MNISTConfig:
    """The four files of MNIST, with a few images of noise."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(content)
    for name, count in (("train", PICTURES), ("t10k", 10)):
        images = rng.integers(0, 256 // content, (count, 28, 28), dtype=np.uint8)
        sizes = np.array(images.shape, ">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.tobytes())
        labels = np.zeros(count, np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + labels.tobytes())
    return MNISTConfig(name="mnist", root=root)


def points(dimensions: int) -> Dataset:
    """Twenty zeros in each split."""
    return Dataset(*(torch.zeros(20, dimensions) for _ in range(3)))


def write_celeba(root: Path, content: int) -> CelebAConfig:
    """Grey faces in CelebA's layout."""
    images = root / "celeba" / "img_align_celeba"
    images.mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}.jpg" for number in range(24)]
    for number, name in enumerate(names):
        Image.new("RGB", (178, 218), (number * (2 * content + 1),) * 3).save(images / name)
    lines = [f"{name} {split}" for name, split in zip(names, [0] * 12 + [1] * 10 + [2] * 2, strict=True)]
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
    return CelebAConfig(name="celeba", root=root)


def replace_unnoticed(root: Path, write: Write, content: int) -> None:
    """Write another content, and give all files their former times of modification."""
    before = {file: file.stat() for file in root.rglob("*") if file.is_file()}
    write(root, content)
    for file, state in before.items():
        if file.exists():
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
