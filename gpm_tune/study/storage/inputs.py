"""What trainings need before they begin, and nodes share: data, the features' network, a teacher."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from gpm_tune import locations
from gpm_tune.data import DataConfig
from gpm_tune.data.dataset import Packable, find_array
from gpm_tune.data.fingerprint import fingerprint, list_files, load
from gpm_tune.errors import UserError
from gpm_tune.metrics import check_features
from gpm_tune.metrics.features import weights_file
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment
from gpm_tune.training.saved import refuse_other_data
from gpm_tune.training.teacher import given_teacher

PACKED = "data/packed"  # below the storage
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
CURRENT = "current"  # names the file that says which of a data set's versions is complete, and wanted

_log = logging.getLogger("gpm_tune")


def prepare(experiment: Experiment, home: Home) -> None:
    """Make sure that data, feature network and teacher can be had.

    Raises UserError where they cannot, before any work has started.
    """
    prepare_data(experiment, home.storage)
    if experiment.feature_network:
        check_features(experiment.feature_network, experiment.evaluation.inception_weights)
    if experiment.teacher is not None:
        prepare(experiment.teacher, home)
        return
    teacher = given_teacher(experiment)
    if teacher is None:
        return
    teacher.load()  # damaged weights would else be found by the first trial
    data, learnt = fingerprint(experiment.data), teacher.record
    refuse_other_data(teacher.folder, learnt, experiment.data, data)
    if learnt.data != data:
        _log.warning("model.teacher: %s was trained on other data than the experiment's", teacher.folder)


def prepare_data(experiment: Experiment, storage: str | None = None) -> None:
    """Make sure that this node has the experiment's data, and enough of them.

    They, and the weights of the features' network, are copied from the storage where that has them. Raises
    UserError where the data cannot be had.
    """
    if storage:
        try:
            _take(experiment.data, storage)
            if file := _weights_of(experiment):
                _take_weights(file, storage)
        except OSError as error:
            raise UserError(f"the data cannot be copied from {storage}: {error}") from None
    experiment.data.prepare()
    experiment.check_samples(len(load(experiment.data, experiment.seed).train))


def check_data_here(experiment: Experiment) -> None:
    """Raise UserError where data or weights that are here cannot be read; what is not here is left alone."""
    experiment.check_data()
    for needed in filter(None, (experiment, experiment.teacher)):
        if _is_here(needed.data):
            prepare_data(needed)
        weights, network = needed.evaluation.inception_weights, needed.feature_network
        if network and (weights or isinstance(network, Path)):
            check_features(network, weights)


def _weights_of(experiment: Experiment) -> Path | None:
    """The file of its feature network, which may be missing; None where that comes with the program."""
    network = experiment.feature_network
    return weights_file(network, experiment.evaluation.inception_weights) if network else None


def _is_here(data: DataConfig) -> bool:
    """Whether a data set needs no download: it is drawn, or its files, or their array, are here."""
    if hasattr(data, "has_files"):
        return data.has_files or (isinstance(data, Packable) and find_array(data.packed) is not None)
    files: Path | None = getattr(data, "files", None)
    if files is None:
        return hasattr(data, "fingerprint")
    return files.is_file() or any(True for _ in list_files(files))


def _take(data: DataConfig, storage: str) -> None:
    """Copy a data set whose files are not here from the storage, if that has it."""
    if isinstance(data, Packable) and not data.has_files:
        stored = f"{storage}/{PACKED}/{data.packed.name}"
        current = locations.retry(lambda: read_current(stored))
        if current:
            _copy(f"{stored}/{current}", data.packed / current)
            if (data.packed / current).exists():
                for other in data.packed.glob("*/"):
                    if other.name != current:  # what it was before; who has it open keeps it
                        shutil.rmtree(other, ignore_errors=True)
            return
    files: Path | None = getattr(data, "files", None)  # of the data sets that have some
    if files is not None and not files.exists():
        _copy(f"{storage}/data/{files.name}", files)


def _take_weights(file: Path, storage: str) -> None:
    """Copy weights that are not here from the storage, if that has them; one process does, others wait."""
    stored = f"{storage}/weights/{file.name}"
    if file.is_file() or not locations.retry(lambda: locations.exists(stored)):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            content = locations.retry(lambda: locations.read(stored))
            locations.write(str(file), content)


def read_current(stored: str) -> str | None:
    """The fingerprint of a packed data set that the storage has, whole; None where it has none."""
    if not locations.exists(f"{stored}/{CURRENT}"):
        return None
    found = locations.read(f"{stored}/{CURRENT}").decode(errors="replace")
    return found if FINGERPRINT.fullmatch(found) else None


def _copy(source: str, place: Path) -> None:
    """Copy a folder from the storage, if that has it; of several processes one does, others wait."""
    if place.exists() or not locations.retry(lambda: locations.exists(source)):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            locations.retry(lambda: locations.download(lambda part: locations.copy(source, str(part)), place))


def share_inputs(experiment: Experiment, storage: str) -> None:
    """Put what nodes need into the storage, unless that has it: of data of many files few, and weights.

    Waits for a storage that is away. Raises UserError where it cannot be written.
    """
    try:
        for file, place in to_share(experiment, lambda name: read_current(f"{storage}/{PACKED}/{name}")):
            _log.info("copying %s to %s/%s/%s", file, storage, PACKED, place)
            locations.retry(partial(locations.send, file, f"{storage}/{PACKED}/{place}"))
        if weights := _weights_of(experiment):
            locations.retry(lambda: _share_weights(weights, f"{storage}/weights/{weights.name}"))
    except OSError as error:
        raise UserError(
            f"the data cannot be copied to {storage}: {error}\n"
            "help: `gpm-tune doctor STUDY.yaml` says what the storage allows"
        ) from None


def _share_weights(file: Path, stored: str) -> None:
    if file.is_file() and not locations.exists(stored):
        locations.write(stored, file.read_bytes())


def has_data_to_share(experiment: Experiment) -> bool:
    """Whether there are data here that nodes can get through the storage only."""
    return bool(_to_share(experiment))


def _to_share(experiment: Experiment) -> list[Any]:
    """The data sets of an experiment and its teacher that are here, and Packable."""
    both = [needed.data for needed in (experiment, experiment.teacher) if needed]
    return [data for data in both if isinstance(data, Packable) and data.has_files]


def to_share(experiment: Experiment, current: Callable[[str], str | None]) -> Iterator[tuple[Path, str]]:
    """The files that are to be copied to the storage, each with its place below its folder of packed data.

    current: the fingerprint that the storage has of a data set. The last file of each says that it is whole.
    """
    for data in _to_share(experiment):
        name, found = data.packed.name, fingerprint(data)
        if current(name) == found:
            continue
        for packed, file in data.pack().items():
            yield file, f"{name}/{found}/{packed}"
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder) / CURRENT
            mark.write_text(found)
            yield mark, f"{name}/{CURRENT}"
