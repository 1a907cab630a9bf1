"""Studies brought from a storage, or a cluster, into a home: as if they had been run there."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.trial import TrialState

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.files import is_plain
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.database import open_storage, read_storage
from gpm_tune.study.accounts.records import (
    StudyRecord,
    UnfinishedError,
    read_confirmation,
    read_study,
    study_names,
)
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import only_once
from gpm_tune.uris import sqlite_uri

_log = logging.getLogger("gpm_tune")

Get = Callable[[str, Path], None]
"""Copies what lies at a path below a storage to a local path. Raises OSError where it cannot."""


def from_storage(storage: str) -> Get:
    """Studies as they lie in a storage."""

    def get(path: str, to: Path) -> None:
        source = f"{storage}/{path}"
        if Path(path).suffix:
            to.write_bytes(locations.read(source))
        else:
            locations.copy(source, str(to))

    return get


def fetch(name: str, home: Home, get: Get, *, checkpoints: str) -> StudyRecord:
    """Bring a study here: its trials, what was tracked, and `best`, `all` or `none` of its checkpoints.

    Fetched again it is brought up to date. Raises UserError where there is no such study, the home has
    another one of this name, or has trained more of it.
    """
    with _fetched(name, home, get) as (found, folder):
        here = _present(name, home)
        if here and _trained(here) > _trained(found):
            raise UserError(
                f"{home.root} has more of study '{name}' than is to be fetched: it was continued here"
            )
        _replace(found, home, folder)
        _take_runs(name, home, get, _chosen(found, checkpoints))
    return read_study(home.optuna_uri, name)


def take_over(name: str, home: Home) -> None:
    """Bring a study here that another machine has continued further, as far as the home's storage has it.

    Raises UserError where the storage cannot be read, or has another study of this name.
    """
    try:
        if home.storage and locations.exists(f"{home.stored(name)}/optuna.db"):
            get = from_storage(home.storage)
            with _fetched(name, home, get) as (found, folder):
                here = _present(name, home)
                if here is None or _trained(here) < _trained(found):
                    _replace(found, home, folder)
    except OSError as error:
        raise UserError(
            f"the storage {home.storage} cannot be read: {error}; `gpm-tune doctor` says more"
        ) from None


@contextmanager
def _fetched(name: str, home: Home, get: Get) -> Iterator[tuple[StudyRecord, Path]]:
    """A study as it is elsewhere, and a folder with its database and file; held for this process.

    Raises UserError where there is none, or the home has another one of this name.
    """
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"'{name}' is no study's name")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            for path in ("optuna.db", "study.yaml"):
                get(f"studies/{name}/{path}", folder / path)
        except OSError as error:
            raise UserError(
                f"study '{name}' cannot be fetched: {error}. If it has just begun, try again in a minute"
            ) from None
        found = read_study(sqlite_uri(folder / "optuna.db"), name)
        home.check()
        with only_once(f"study '{name}'", home.study(name)):
            here = _present(name, home)
            if here and here.id != found.id:
                raise UserError(
                    f"{home.root} has another study named '{name}'; use another folder (--home), or delete "
                    f"it: gpm-tune delete {name}"
                )
            yield found, folder


def _present(name: str, home: Home) -> StudyRecord | None:
    """The study as the home has it; None where it has none, or one whose copying was interrupted."""
    with suppress(UnfinishedError):
        return read_study(home.optuna_uri, name) if name in study_names(home.optuna_uri) else None
    return None


def _replace(found: StudyRecord, home: Home, folder: Path) -> None:
    """Put what was fetched in place of what the home has of the study."""
    _copy_plain(folder / "study.yaml", home.study(found.name) / "study.yaml")
    _copy_trials(sqlite_uri(folder / "optuna.db"), found.name, home)


def _copy_plain(source: Path, target: Path) -> None:
    """Copy a file, or those of a folder, but no link: it would show, or write to, a file of this machine."""
    root = source if source.is_dir() else source.parent
    for file in source.rglob("*") if source.is_dir() else [source]:
        if is_plain(file, root):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)


def _take_runs(name: str, home: Home, get: Get, chosen: set[int]) -> None:
    """Bring the training runs of a study's trials here, those of the chosen trials with their checkpoints."""
    records = [read_study(home.optuna_uri, name), read_confirmation(home.optuna_uri, name)]
    trials = [trial for record in records if record for trial in record.trials if trial.run]
    wanted = {trial.run for trial in records[0].trials if trial.number in chosen} if records[0] else set()
    for run in dict.fromkeys(trial.run for trial in trials):
        parts = ["experiment.yaml", "evaluations", "samples", *(["checkpoints"] if run in wanted else [])]
        for part in parts:
            with tempfile.TemporaryDirectory() as folder:
                fetched = Path(folder) / part
                try:
                    get(f"runs/{run}/{part}", fetched)
                except OSError as error:
                    _log.warning("%s of %s is left out: %s; fetch again", part, run, error)
                else:
                    _copy_plain(fetched, home.root / "runs" / str(run) / part)


def _trained(record: StudyRecord) -> int:
    return sum(trial.step for trial in record.trials)


def _chosen(record: StudyRecord, checkpoints: str) -> set[int]:
    """The numbers of the trials whose checkpoints are wanted."""
    if checkpoints == "all":
        return {trial.number for trial in record.trials}
    return {trial.number for trial in record.ranked()[:1]} if checkpoints == "best" else set()


def _copy_trials(source: str, name: str, home: Home) -> None:
    """The studies of both stages."""
    there, here = read_storage(source), open_storage(home.optuna_uri, Patience())
    assert there is not None, "the study was read from it"
    present = optuna.get_all_study_names(there)
    for stage in (name, name + CONFIRMATION):
        if stage not in present:
            continue
        old = optuna.load_study(study_name=stage, storage=there)
        trials = old.get_trials()
        if stage in optuna.get_all_study_names(here):
            optuna.delete_study(study_name=stage, storage=here)
        new = optuna.create_study(study_name=stage, storage=here, directions=old.directions)
        new.add_trials(trials)
        for key in sorted(old.user_attrs, key="id".__eq__):  # the id last: it says that the rest is here
            new.set_user_attr(key, old.user_attrs[key])
        running = [trial for trial in new.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        for trial in running:  # what runs it is elsewhere
            optuna.Trial(new, trial._trial_id).set_user_attr("interrupted", True)
