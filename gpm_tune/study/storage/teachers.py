"""Trained teachers in the storage of a cluster: trained on one node, used on all."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from gpm_tune.study.storage import shared_storage
from gpm_tune.training import Experiment, checkpoint
from gpm_tune.training.teacher import is_trained, teacher_folder


def fetch_teacher(teacher: Experiment | None, cache: Path, storage: str) -> None:
    """Copy a teacher to this node, as far as it is trained, unless it is here.

    Waits for a storage that is away; raises OSError where it stays so.
    """
    if teacher is None or is_trained(teacher, cache):
        return
    folder = teacher_folder(teacher, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # several trials may start at the same time
        shared_storage.patiently(lambda: _fetch(_stored(teacher, cache, storage), folder / "checkpoints"))


def _fetch(stored: str, checkpoints: Path) -> None:
    for name in shared_storage.children(stored):
        if not checkpoint.is_whole(checkpoints / name):
            shared_storage.copy(f"{stored}/{name}", str(checkpoints / name))


def share_teacher(teacher: Experiment, cache: Path, storage: str) -> None:
    """Copy a teacher's newest checkpoint to the storage, in place of its older ones.

    Waits for a storage that is away; raises OSError where it stays so.
    """
    newest = checkpoint.latest(teacher_folder(teacher, cache))
    if newest is not None:
        shared_storage.patiently(lambda: _share(newest, _stored(teacher, cache, storage)))


def _share(newest: Path, stored: str) -> None:
    shared_storage.copy(str(newest), f"{stored}/{newest.name}")
    for name in shared_storage.children(stored):
        if name != newest.name:
            shared_storage.delete(f"{stored}/{name}")


def _stored(teacher: Experiment, cache: Path, storage: str) -> str:
    return f"{storage}/teachers/{teacher_folder(teacher, cache).name}"
