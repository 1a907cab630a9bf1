"""Locations: a path or a URI, /mnt/shared/x, s3://BUCKET/x, gs://BUCKET/x.

Buckets are reached as Ray reaches them, through Arrow, with the credentials that the machine has.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from gpm_tune import patience
from gpm_tune.errors import UserError

PIECE = 2**24  # bytes of a file that are in memory at a time

T = TypeVar("T")


def is_bucket(location: str) -> bool:
    """Whether it is in a bucket, and not a folder of the file system."""
    return "://" in location


def _opened(location: str) -> tuple[Any, str]:
    """Arrow's file system of a bucket, or of this machine, and the path there.

    Raises UserError where it is not one that Arrow knows.
    """
    import pyarrow
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not is_bucket(location):
        return LocalFileSystem(), str(Path(location).absolute())
    try:
        files, path = FileSystem.from_uri(location)
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"storage {location}: {error}. Give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or a folder that "
            "all nodes share"
        ) from None
    return files, path.rstrip("/")


def children(location: str) -> list[str]:
    """The names of what lies in a folder, sorted; none where there is no such folder."""
    if not is_bucket(location):
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(path.name for path in Path(location).iterdir())
        return []
    from pyarrow.fs import FileSelector

    files, path = _opened(location)
    return sorted(info.base_name for info in files.get_file_info(FileSelector(path, allow_not_found=True)))


def exists(location: str) -> bool:
    """Tell whether a file or a folder is there."""
    if not is_bucket(location):
        return Path(location).exists()
    from pyarrow.fs import FileType

    files, path = _opened(location)
    return bool(files.get_file_info(path).type != FileType.NotFound)


def read(location: str) -> bytes:
    """The content of a file. Raises OSError where it cannot be read."""
    if not is_bucket(location):
        return Path(location).read_bytes()
    files, path = _opened(location)
    with files.open_input_file(path) as file:
        content: bytes = file.readall()
    return content


def write(location: str, content: bytes) -> None:
    """Write a file, which is there as a whole or not at all. Raises OSError where it cannot be written."""
    with _written(location) as file:
        file.write(content)


def send(file: Path, location: str) -> None:
    """Copy a file of any size to the storage. Raises OSError where that is not possible."""
    with file.open("rb") as source, _written(location) as target:
        shutil.copyfileobj(source, target, PIECE)


@contextmanager
def _written(location: str) -> Iterator[Any]:
    """A stream to a file, which is there once everything is written."""
    if is_bucket(location):  # where files are whole
        files, path = _opened(location)
        with files.open_output_stream(path) as file:
            yield file
        return
    place = Path(location)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        yield file
    partial.replace(place)


def copy(source: str, destination: str) -> None:
    """Copy a folder with all that lies in it. Raises OSError where that is not possible."""
    if not (is_bucket(source) or is_bucket(destination)):
        shutil.copytree(source, destination, dirs_exist_ok=True)
        return
    from pyarrow.fs import copy_files

    from_files, from_path = _opened(source)
    to_files, to_path = _opened(destination)
    to_files.create_dir(to_path)
    copy_files(from_path, to_path, source_filesystem=from_files, destination_filesystem=to_files)


def delete(location: str) -> None:
    """Delete a folder with all that lies in it, if it is there."""
    if not is_bucket(location):
        with suppress(FileNotFoundError):
            shutil.rmtree(location)
    elif exists(location):
        files, path = _opened(location)
        files.delete_dir(path)


def delete_file(location: str) -> None:
    """Delete a file. Raises OSError where that is not possible."""
    if not is_bucket(location):
        Path(location).unlink()
        return
    files, path = _opened(location)
    files.delete_file(path)


def local(location: str, cache: Path) -> Path:
    """A folder of the storage on this machine: itself, or a copy of what is in a bucket, made once.

    For what never changes, as a checkpoint; no folder is there where the storage has none. Raises OSError
    where the storage is away.
    """
    if not is_bucket(location):
        return Path(location)
    place = copy_of(location, cache)
    if not place.is_dir() and exists(location):
        download(lambda partial: copy(location, str(partial)), place)
    return place


def copy_of(location: str, cache: Path) -> Path:
    """Where a cache has its copy of a folder that is in a bucket."""
    return cache / "from_storage" / location.partition("://")[2]


def download(get: Callable[[Path], None], place: Path) -> None:
    """Let a folder be copied to this machine, where it is there as a whole or not at all.

    get: copies it to a path. What it raises is raised.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        partial = Path(folder) / place.name
        get(partial)
        if not place.is_dir():  # another process may have been faster
            partial.rename(place)


def retry(
    use: Callable[[], T],
    note: Callable[[Exception], None] = lambda _: None,
    is_over: Callable[[], bool] = bool,
) -> T:
    """Use the storage; while it is away, again for as long as storages usually are.

    note: is told each time why it is thought to be away. is_over: ends the wait. Raises what the last
    attempt raised.
    """
    return patience.retry(use, lambda error: isinstance(error, OSError), note, is_over)
