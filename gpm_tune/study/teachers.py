"""Trained teachers in the storage of a cluster: trained on one node, used on all."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from gpm_tune.study import shared_storage
from gpm_tune.training import Experiment, checkpoint
from gpm_tune.training.teacher import is_trained, teacher_folder


def fetch_teacher(teacher: Experiment | None, cache: Path, storage: str) -> None:
    """Copy a teacher to this node, as far as it is trained, unless it is here.

    Raises OSError where the storage is away.
    """
    if teacher is None or is_trained(teacher, cache):
        return
    folder = teacher_folder(teacher, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # several trials may start at the same time
        stored = _stored(teacher, cache, storage)
        for name in shared_storage.children(stored):
            if not checkpoint.is_whole(folder / "checkpoints" / name):
                shared_storage.copy(f"{stored}/{name}", str(folder / "checkpoints" / name))


def share_teacher(teacher: Experiment, cache: Path, storage: str) -> None:
    """Copy a teacher's newest checkpoint to the storage, in place of its older ones.

    Raises OSError where the storage is away.
    """
    newest = checkpoint.latest(teacher_folder(teacher, cache))
    stored = _stored(teacher, cache, storage)
    if newest is not None:
        shared_storage.copy(str(newest), f"{stored}/{newest.name}")
        for name in shared_storage.children(stored):
            if name != newest.name:
                shared_storage.delete(f"{stored}/{name}")


def _stored(teacher: Experiment, cache: Path, storage: str) -> str:
    return f"{storage}/teachers/{teacher_folder(teacher, cache).name}"
