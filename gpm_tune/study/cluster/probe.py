"""What holds data, tried out from the machine that this runs on: written, read and tidied, and how fast."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.study.storage.home import Home, existing

PROBE_BYTES = 4_000_000


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
    if mark is not None and not locations.exists(place_of(storage, mark)):
        raise UserError("what another machine writes there is not seen: it is not the same storage")
    place, data = place_of(storage, f"gpm-tune-doctor-{uuid.uuid4().hex}"), os.urandom(PROBE_BYTES)
    try:
        start = time.perf_counter()
        locations.write(place, b"1")
        small = time.perf_counter()
        locations.write(place, data)
        written = time.perf_counter()
        if locations.read(place) != data:
            raise UserError("what is read there is not what was written")
        read = time.perf_counter()
    except Exception:
        with suppress(OSError):  # it may have been written; what counts is the first error
            locations.delete_file(place)
        raise
    locations.delete_file(place)
    if locations.exists(place):
        raise UserError("a file that was deleted there is still there")
    return Speed(small - start, PROBE_BYTES / (written - small), PROBE_BYTES / (read - written))


def place_of(storage: str, name: str) -> str:
    """Where a file of the storage is; a local folder that is missing is not made."""
    folder = storage if locations.is_bucket(storage) else existing(Path(storage))
    return f"{folder}/{name}"


def register_model(home: Home) -> float:
    """Register a model in MLflow's store, as a study does, and delete it; seconds, once the store is open."""
    client = home.mlflow()
    client.search_experiments(max_results=1)
    name = f"gpm-tune-doctor-{uuid.uuid4().hex}"
    start = time.perf_counter()
    client.create_registered_model(name)
    seconds = time.perf_counter() - start
    client.delete_registered_model(name)
    return seconds


def upload(home: Home) -> None:
    """Put a file where a server of MLflow keeps artifacts, and delete it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    name = f"gpm-tune-doctor-{uuid.uuid4().hex}"
    for experiment in home.mlflow().search_experiments(max_results=1):  # a server has one from the start
        artifacts = get_artifact_repository(
            experiment.artifact_location, tracking_uri=home.tracking_uri.secret()
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_text("written by gpm-tune doctor")
            artifacts.log_artifact(str(file))
        artifacts.delete_artifacts(name)


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that a folder is on; empty if unknown."""
    kinds = {}
    for line in (mounts.read_text() if mounts.exists() else "").splitlines():
        _, point, kind, *_ = line.split()
        kinds[Path(point.replace("\\040", " "))] = kind  # a later mount hides an earlier one
    return next((kinds[place] for place in (folder, *folder.parents) if place in kinds), "")
