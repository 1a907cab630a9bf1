"""Pictures of any kind become arrays: decoded once, in parallel, into a file that is mapped into memory."""

from __future__ import annotations

import logging
import os
import shlex
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from gpm_tune.cores import usable_cores
from gpm_tune.errors import UserError, escaped

if TYPE_CHECKING:
    from PIL.Image import Image

NAMED = 10  # unreadable pictures that an error names
UNREADABLE = "unreadable.list"  # beside the array: the paths of all of them, each ended by a null character
TURNS = {  # EXIF's orientations other than upright, as members of PIL.Image.Transpose that undo them
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

_log = logging.getLogger("gpm_tune")

Shape = tuple[int, ...]


def mapped(array: Path, shape: Shape, write: Callable[[Path], None]) -> np.memmap:
    """The array (*shape) in uint8 that a file holds, mapped into memory copy-on-write.

    Its first dimension may be less than the shape's, where `write` left something out.
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
    fits = found is not None and found.shape[1:] == shape[1:] and len(found) <= shape[0]
    return found if fits else None


def open_array(array: Path) -> np.memmap | None:
    """The array in uint8 of a file, mapped into memory copy-on-write; None where there is no whole one."""
    try:
        found: np.memmap = np.load(array, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.uint8 else None


def decode_all(
    files: Sequence[Path], channels: int, side: int, to: Path, *, skip_unreadable: bool = False
) -> None:
    """Write the pictures of these files, decoded in parallel, as one array (N, channels, side, side).

    Raises UserError that names those that cannot be read, unless they are to be left out, which is said.
    All of them are listed in a file beside the array.
    """
    problems: dict[Path, str] = {}

    def attempt(file: Path) -> np.ndarray | str:
        try:
            return decode(file, channels, side)
        except Exception as error:  # whatever a damaged file leads to
            return escaped(f"{file}: cannot be read as an image: {error or type(error).__name__}")

    import_readers()
    # Written one after the other and not through a map, in which a full disk would kill the process.
    with to.open("wb") as out, ThreadPoolExecutor(usable_cores()) as pool:
        _write_header(out, (len(files), channels, side, side))
        for file, result in zip(files, pool.map(attempt, files), strict=True):
            if isinstance(result, str):
                problems[file] = result
            else:
                out.write(result.tobytes())
        out.seek(0)
        _write_header(out, (len(files) - len(problems), channels, side, side))  # as long: numpy leaves room
        out.flush()
        os.fsync(out.fileno())
    listed = to.with_name(UNREADABLE)
    listed.unlink(missing_ok=True)
    if problems:
        listed.write_bytes(b"".join(os.fsencode(file) + b"\0" for file in problems))
        _judge(list(problems.values()), len(files), listed, skip_unreadable=skip_unreadable)


def _write_header(out: IO[bytes], shape: Shape) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)


def _judge(problems: list[str], count: int, listed: Path, *, skip_unreadable: bool) -> None:
    """Raise UserError about unreadable pictures, or say that they are left out."""
    title = f"{len(problems)} of {count} pictures cannot be read"
    listing = f"`xargs -0 ls < {shlex.quote(str(listed))}` lists them all"
    if skip_unreadable:
        _log.warning("%s and are left out; %s", title, listing)
        return
    more = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    advice = f"help: {listing}; data sets 'folder' leave them out with data.skip_unreadable: true"
    raise UserError("\n".join([f"{title}; fix or delete them", *problems[:NAMED], *more, advice]))


def import_readers() -> None:
    """Import all that Pillow imports when it opens and converts pictures, before threads do it."""
    from PIL import Image, ImageCms, ImageOps  # noqa: F401

    Image.init()


def decode(file: Path, channels: int, side: int) -> np.ndarray:
    """A picture as (channels, side, side) in uint8: upright, its central square, by Lanczos' filter.

    channels: 3 for RGB, 1 for grey. What is transparent shows white; of animations it is the first frame.
    Raises whatever Pillow raises where the file holds no picture.
    """
    from PIL import Image

    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("it is no regular file")  # a pipe would be waited for, for ever
    with Image.open(file) as image:
        upright = _upright(image)
        edge = min(upright.size)
        left, top = (upright.width - edge) // 2, (upright.height - edge) // 2
        square = _opaque(upright.crop((left, top, left + edge, top + edge)))
        # Of LAB there is no other way to grey.
        coloured = square.convert("RGB") if channels == 3 or square.mode == "LAB" else square
        plain = coloured if channels == 3 else coloured.convert("L")
        pixels = np.asarray(plain.resize((side, side), Image.Resampling.LANCZOS))
    return pixels.reshape(side, side, channels).transpose(2, 0, 1)


def _upright(image: Image) -> Image:
    """Turned as its EXIF data say. Where these are broken the picture may yet be sound: it stays as it is."""
    from PIL import ExifTags, Image

    image.load()  # some formats have their EXIF data at the end
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
        turn = TURNS.get(orientation)
    except Exception:  # whatever mistyped metadata lead to
        turn = None
    return image if turn is None else image.transpose(Image.Transpose[turn])


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
