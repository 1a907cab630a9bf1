"""What trainings need before they begin, and nodes share: data, the features' network, a teacher."""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import FileLock

from gpm_tune.data.fingerprint import fingerprint
from gpm_tune.errors import UserError
from gpm_tune.metrics import check_features
from gpm_tune.study.storage import shared_storage
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment, checkpoint
from gpm_tune.training.teacher import is_trained, teacher_checkpoint, teacher_folder

_log = logging.getLogger("gpm_tune")


def prepare(experiment: Experiment, home: Home) -> None:
    """Make sure that data, feature network and teacher can be had.

    Raises UserError where they cannot, before any work has started.
    """
    prepare_data(experiment, home.storage)
    if experiment.features:
        check_features(experiment.features, experiment.evaluation.inception_weights)
    if experiment.teacher is not None:
        prepare(experiment.teacher, home)
        return
    data = fingerprint(experiment.data)
    teacher = teacher_checkpoint(experiment, home.cache, data)
    if teacher and checkpoint.read_record(teacher)["data"] != data:
        _log.warning("model.teacher: %s was trained on other data than the experiment's", teacher)


def prepare_data(experiment: Experiment, storage: str | None = None) -> None:
    """Make sure that this node has the experiment's data, and enough of them.

    They are copied from the storage, where that has them. Raises UserError where they cannot be had.
    """
    data = experiment.data
    files: Path | None = getattr(data, "files", None)  # of the data sets that have some
    if storage and files is not None and not files.exists():
        _copy_from(f"{storage}/data/{files.name}", files)
    data.prepare()
    experiment.check_samples(len(data.load(experiment.seed).train))


def _copy_from(source: str, files: Path) -> None:
    """Copy a data set from the storage, if that has it; of several processes one does, others wait."""
    try:
        if not shared_storage.patiently(lambda: shared_storage.exists(source)):
            return
        files.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{files}.lock"):
            if not files.exists():
                shared_storage.patiently(
                    lambda: shared_storage.bring(
                        lambda partial: shared_storage.copy(source, str(partial)), files
                    )
                )
    except OSError as error:
        raise UserError(f"{source} cannot be copied to {files}: {error}") from None


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
