"""Pictures of any kind become arrays: decoded once, in parallel, into a file that is mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from gpm_tune.cores import usable_cores
from gpm_tune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

NAMED = 10  # unreadable pictures that an error names

Shape = tuple[int, ...]


def mapped(array: Path, shape: Shape, write: Callable[[Path], None]) -> np.memmap:
    """The array (*shape) in uint8 that a file holds, mapped into memory copy-on-write.

    write: called with a path to write it to, where the file is not there, or not whole; of several
    processes that want arrays of the same folder by one, while the others wait. What it raises is raised.
    Raises UserError where the file's folder cannot be written.
    """
    found = _open(array, shape)
    if found is not None:
        return found
    try:
        array.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(array.parent / "gpm_tune.lock"):
            found = _open(array, shape)  # another process may have been faster
            if found is None:
                partial = array.with_suffix(".partial")
                try:
                    write(partial)
                    partial.replace(array)
                finally:
                    partial.unlink(missing_ok=True)
                found = np.load(array, mmap_mode="c")
            return found
    except OSError as error:
        raise UserError(
            f"{array}: decoded pictures cannot be kept there: {error.strerror or error}. They take "
            f"{np.prod(shape, dtype=np.int64) / 1e6:,.0f} MB; name a folder with room for them, that can be "
            "written, in GPM_TUNE_DATA"
        ) from None


def _open(array: Path, shape: Shape) -> np.memmap | None:
    """The array of a file; None where that is missing, truncated, or of another shape."""
    found = open_array(array)
    return found if found is not None and found.shape == shape else None


def open_array(array: Path) -> np.memmap | None:
    """The array in uint8 of a file, mapped into memory copy-on-write; None where there is no whole one."""
    try:
        found: np.memmap = np.load(array, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.uint8 else None


def decode_all(files: Sequence[Path], channels: int, side: int, to: Path) -> None:
    """Write the pictures of these files, decoded in parallel, as one array (N, channels, side, side).

    Raises UserError that names those that cannot be read.
    """
    shape = (len(files), channels, side, side)
    problems = []

    def attempt(file: Path) -> np.ndarray | str:
        try:
            return decode(file, channels, side)
        except Exception as error:  # whatever a damaged file leads to
            return f"{file}: cannot be read as an image: {error or type(error).__name__}"

    # Written one after the other and not through a map, in which a full disk would kill the process.
    with to.open("wb") as out, ThreadPoolExecutor(usable_cores()) as pool:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for result in pool.map(attempt, files):
            if isinstance(result, str):
                problems.append(result)
            else:
                out.write(result.tobytes())
        out.flush()
        os.fsync(out.fileno())
    if problems:
        more = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
        title = f"{len(problems)} of {len(files)} pictures cannot be read; mend them, or take them away"
        raise UserError("\n".join([title, *problems[:NAMED], *more]))


def decode(file: Path, channels: int, side: int) -> np.ndarray:
    """A picture as (channels, side, side) in uint8: upright, its central square, by Lanczos' filter.

    channels: 3 for RGB, 1 for grey. What is transparent shows white; of animations it is the first frame.
    Raises whatever Pillow raises where the file holds no picture.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        edge = min(upright.size)
        left, top = (upright.width - edge) // 2, (upright.height - edge) // 2
        square = _opaque(upright.crop((left, top, left + edge, top + edge)))
        plain = square.convert("RGB" if channels == 3 else "L")
        pixels = np.asarray(plain.resize((side, side), Image.Resampling.LANCZOS))
    return pixels.reshape(side, side, channels).transpose(2, 0, 1)


def _opaque(image: Image) -> Image:
    """In eight bits per channel, without transparency."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of which black and white are not known")
    if image.mode.startswith("I"):  # 16 bits, of which Pillow itself would keep none above 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
