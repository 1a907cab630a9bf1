"""A folder of pictures, in any format and of any size, cached as one array on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gpm_tune.config import Config
from gpm_tune.data.dataset import Dataset, default_root, find_array
from gpm_tune.data.fingerprint import IRREGULAR, File, digest, list_files
from gpm_tune.data.images import decode_all, mapped, open_array
from gpm_tune.errors import UserError, escaped
from gpm_tune.paths import LocalPath, expand

LEAST = 20  # pictures: two for validation, because of one there is no FID
NOT_DECODED = {"EPS", "MPEG"}  # opened by Pillow, and decoded by another program, or not at all
DECODING = 1  # raised by changes to how pictures are decoded: arrays of before are not used then

_log = logging.getLogger("gpm_tune")


class FolderConfig(Config):
    """A folder of pictures: their central squares, resized and scaled to [-1, 1]; eight tenths for training.

    Every file in a format that Pillow itself decodes is taken, in nested folders, too; hidden ones, and
    folders that are links, are left out; other files are counted. Pictures are turned upright as their EXIF
    data say; what is transparent shows white. A tenth, chosen by their names, are for tests, and another
    tenth, drawn from the seed, for validation. They are decoded once, into folders/ below $GPM_TUNE_DATA,
    else ~/.cache/gpm-tune/data, and again when the folder has changed; nothing is written into the folder
    itself.
    """

    name: Literal["folder"]
    root: LocalPath = Field(
        description="The folder. A relative path starts at the working folder. On a cluster the machine "
        "that starts the study needs it; nodes get the decoded pictures.",
    )
    size: int = Field(
        32, ge=4, le=1024, description="Side of the square images in pixels; networks say which they take."
    )
    channels: Literal[1, 3] = Field(3, description="3 for colour (RGB), 1 for grey.")

    skip_unreadable: bool = Field(
        False, description="Whether pictures that cannot be read are left out, and counted, or are an error."
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.channels, self.size, self.size)

    @property
    def validation_samples(self) -> int:
        """How many samples are held out for evaluations. Raises UserError where the folder has too few."""
        is_known_by_names = self._array is None and not self.skip_unreadable
        return len(self._listing() if is_known_by_names else self._images()) // 10

    @property
    def files(self) -> Path:
        """The folder of its files, or of the array that has come in their place."""
        return self._folder if self._array is None else self._array.parent

    @property
    def has_files(self) -> bool:
        """Whether the folder is here."""
        return self._folder.exists()

    @property
    def packed(self) -> Path:
        """Where the array is that has come in place of the folder."""
        place = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]
        return default_root() / "packed" / f"{self.root.name[:50]}-{self._form}-{place}"

    def pack(self) -> dict[str, Path]:
        """The array. Raises UserError as `prepare` does."""
        return {"pictures.npy": Path(str(self._images().filename))}

    @property
    def _folder(self) -> Path:
        return expand(self.root)

    @property
    def _array(self) -> Path | None:
        """The array that has come in place of the folder, where that is not here."""
        return None if self.has_files else find_array(self.packed)

    @property
    def _form(self) -> str:
        return "x".join(map(str, self.shape)) + ("_readable" if self.skip_unreadable else "")

    @property
    def label(self) -> str:
        """What tells it from other folders in tables and figures."""
        return f"folder {self.root.name}"

    def prepare(self) -> None:
        """Decode all pictures, unless that was done. Raises UserError where it is not possible."""
        self._images()

    def load(self, seed: int) -> Dataset:
        """Test images are the same for every seed, validation images are drawn from it.

        The images are read when needed. Raises UserError as `prepare` does.
        """
        images = torch.from_numpy(self._images())
        held_out = len(images) // 10
        rest, test = images[:-held_out], images[-held_out:]
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        bring_forward(rest, order[:held_out])
        return Dataset(rest[held_out:], rest[:held_out], test)

    def _images(self) -> np.memmap:
        """The pictures (N, *shape) in uint8 in the order of the listing, mapped into memory copy-on-write."""
        if self._array is not None:
            return self._unpacked(self._array)
        listing = self._listing()
        form = self._form
        place = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:8]
        folder = default_root() / "folders" / f"{self._folder.name[:50]}-{place}"
        array = folder / f"{form}-{digest((DECODING, listing))}.npy"

        def write(partial: Path) -> None:
            if left_out := self._left_out():
                _log.warning("data.root: %s has %d pictures; %s", self._folder, len(listing), left_out)
            files = [self._folder / picture.name for picture in listing]
            decode_all(files, self.channels, self.size, partial, skip_unreadable=self.skip_unreadable)
            for file in folder.glob(f"{form}-*"):  # of what the folder was before
                if file.stem != array.stem:
                    file.unlink(missing_ok=True)

        found = mapped(array, (len(listing), *self.shape), write)
        self._check_count(len(found))
        return found

    def _unpacked(self, array: Path) -> np.memmap:
        found = open_array(array)
        if found is None or found.shape[1:] != self.shape or len(found) < LEAST:
            raise UserError(
                f"{array} holds no pictures of {self._form}\nhelp: delete it: it is fetched again"
            )
        return found

    def _listing(self) -> list[File]:
        """The pictures in the folder, in an order of their names that mixes nested folders.

        Raises UserError where there are too few, or a folder cannot be read.
        """
        found = [file for file in self._files() if _is_picture(file)]
        self._check_count(len(found))
        return sorted(found, key=lambda picture: hashlib.sha256(os.fsencode(picture.name)).digest())

    def _files(self) -> list[File]:
        return list(list_files(self._folder, visible=True, onerror=self._refuse))

    def _left_out(self) -> str:
        """What is in the folder besides pictures, counted by kind; empty where there is nothing."""
        kinds = Counter(_kind(file) for file in self._files() if not _is_picture(file))
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"left out as no pictures that Pillow decodes: {listed}" if listed else ""

    def _check_count(self, count: int) -> None:
        if count < LEAST:
            left_out = self._left_out()
            raise UserError(
                f"data.root: {self._folder} has {count} pictures, but at least {LEAST} are needed: "
                "a tenth are held out for validation, a tenth for tests. Counted are files in formats that "
                "Pillow itself decodes, in nested folders, too; hidden ones, and folders that are links, are "
                f"not{'; ' if left_out else ''}{left_out}"
            )

    def _refuse(self, error: OSError) -> None:
        raise UserError(
            f"data.root: {error.filename} cannot be read as a folder: {error.strerror}. Put the pictures "
            "there, or name the folder that has them in the key data.root; for a cluster, start the study "
            "on a machine that has them"
        )


def bring_forward(images: Tensor, chosen: Tensor) -> None:
    """Exchange images in place, so that those chosen are the first; all others stay as they are mapped.

    images: (N, ...). chosen: indices (n,), each once.
    """
    first = torch.ones(len(chosen), dtype=torch.bool)
    first[chosen[chosen < len(chosen)]] = False
    leave, enter = first.nonzero().squeeze(1), chosen[chosen >= len(chosen)]
    images[leave], images[enter] = images[enter], images[leave]


def _is_picture(file: File) -> bool:
    return file.size != IRREGULAR and Path(file.name).suffix.lower() in _extensions()


def _kind(file: File) -> str:
    """What a file that is no picture is counted as."""
    if file.size == IRREGULAR:
        return "special files (pipes, sockets, devices)"
    return escaped(Path(file.name).suffix.lower()) or "without a suffix"


@cache
def _extensions() -> set[str]:
    """Of the files that Pillow itself can decode: with a dot, in lower case."""
    from PIL import Image, ImageFile

    suffixes = Image.registered_extensions()  # reads the list of formats in Image.OPEN, too
    stubs = {
        kind
        for kind, (reader, _) in Image.OPEN.items()
        if isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile)
    }
    decoded = {*Image.OPEN, "MPO"} - stubs - NOT_DECODED  # MPO, of several JPEGs, is opened as JPEG
    return {suffix for suffix, kind in suffixes.items() if kind in decoded}
