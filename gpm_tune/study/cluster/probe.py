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
from typing import TypeVar

from gpm_tune.errors import UserError
from gpm_tune.study.storage import shared_storage
from gpm_tune.study.storage.home import existing

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
    if mark is not None and not shared_storage.exists(place_of(storage, mark)):
        raise UserError("what another machine writes there is not seen: it is not the same storage")
    place, data = place_of(storage, f"gpm-tune-doctor-{uuid.uuid4().hex}"), os.urandom(PROBE_BYTES)
    try:
        start = time.perf_counter()
        shared_storage.write(place, b"1")
        small = time.perf_counter()
        shared_storage.write(place, data)
        written = time.perf_counter()
        if shared_storage.read(place) != data:
            raise UserError("what is read there is not what was written")
        read = time.perf_counter()
    except Exception:
        with suppress(OSError):  # it may have been written; what counts is the first error
            shared_storage.delete_file(place)
        raise
    shared_storage.delete_file(place)
    if shared_storage.exists(place):
        raise UserError("a file that was deleted there is still there")
    return Speed(small - start, PROBE_BYTES / (written - small), PROBE_BYTES / (read - written))


def place_of(storage: str, name: str) -> str:
    """Where a file of the storage is; a local folder that is missing is not made."""
    folder = storage if shared_storage.is_bucket(storage) else existing(Path(storage))
    return f"{folder}/{name}"


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
