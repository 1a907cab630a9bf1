"""Whether a storage can be used from the machine that this runs on: written, read, tidied, and how fast."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpm_tune.errors import UserError
from gpm_tune.study.nodes import existing

PROBE_BYTES = 4_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Speed:
    """How fast a storage is from one machine: seconds, and bytes per second."""

    latency: float
    write: float
    read: float

    def __str__(self) -> str:
        return (
            f"written at {self.write / 1e6:.0f} MB/s, read at {self.read / 1e6:.0f} MB/s, "
            f"{self.latency * 1000:.0f} ms for a small file"
        )


def round_trip(storage: str, mark: str | None = None) -> Speed:
    """Write, read and delete files in a storage.

    mark: a file that another machine has written there. Raises UserError where it cannot be seen, or
    what is read is not what was written; else what pyarrow raises.
    """
    if mark is not None and not _exists(storage, mark):
        raise UserError("what another machine writes there is not seen: it is not the same storage")
    name, data = f"gpm-tune-doctor-{uuid.uuid4().hex}", os.urandom(PROBE_BYTES)
    try:
        start = time.perf_counter()
        write(storage, name, b"1")
        small = time.perf_counter()
        write(storage, name, data)
        written = time.perf_counter()
        if _read(storage, name) != data:
            raise UserError("what is read there is not what was written")
        read = time.perf_counter()
    except Exception:
        with suppress(OSError):  # it may have been written; what counts is the first error
            delete(storage, name)
        raise
    delete(storage, name)
    if _exists(storage, name):
        raise UserError("a file that was deleted there is still there")
    return Speed(small - start, PROBE_BYTES / (written - small), PROBE_BYTES / (read - written))


def _open(storage: str) -> tuple[Any, str]:
    """Arrow's file system, as Ray uses it, and the folder; a local one that is missing is not made."""
    from pyarrow.fs import FileSystem, LocalFileSystem  # type: ignore[import-untyped]

    if "://" not in storage:
        return LocalFileSystem(), str(existing(Path(storage)))
    files, folder = FileSystem.from_uri(storage)
    return files, folder


def write(storage: str, name: str, data: bytes) -> None:
    """Write a file of this name. Raises what pyarrow raises."""
    files, folder = _open(storage)
    with files.open_output_stream(f"{folder}/{name}") as file:
        file.write(data)


def _read(storage: str, name: str) -> bytes:
    files, folder = _open(storage)
    with files.open_input_file(f"{folder}/{name}") as file:
        data: bytes = file.readall()
    return data


def _exists(storage: str, name: str) -> bool:
    files, folder = _open(storage)
    return bool(files.get_file_info(f"{folder}/{name}").is_file)


def delete(storage: str, name: str) -> None:
    """Delete the file of this name. Raises what pyarrow raises."""
    files, folder = _open(storage)
    files.delete_file(f"{folder}/{name}")


def within(seconds: float, function: Callable[..., T], *arguments: object) -> T:
    """What a function returns or raises; UserError where it takes longer, and is left behind."""
    results: list[T] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(function(*arguments))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise UserError(f"it has not answered within {seconds:g} s")
    return results[0]
