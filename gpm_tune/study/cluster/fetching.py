"""Studies brought from a storage, or a cluster, into a home: as if they had been run there."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.trial import TrialState

from gpm_tune import locations
from gpm_tune.errors import MIGRATE, UserError
from gpm_tune.files import is_plain
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.database import open_storage, read_storage
from gpm_tune.study.accounts.records import (
    StudyRecord,
    UnfinishedError,
    read_confirmation,
    read_study,
    run_user,
    study_names,
)
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.storage.home import STUDY_FILES, Home
from gpm_tune.study.storage.locks import only_once
from gpm_tune.training.run import Runs
from gpm_tune.uris import sqlite_uri

PLAIN = re.compile(r"[\w+-][\w.+-]*")  # names of folders

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
    """Bring a study into a home: its trials, and their training runs.

    checkpoints: those of the `best`, `all` or `none` of the trials come, too. Fetched again it is brought up
    to date. Raises UserError where there is no such study, the home has another one of this name, or has more
    of it.
    """
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"'{name}' is no study's name")
    home.check()
    with only_once(f"study '{name}'", home.study(name)), _fetched(name, home, get) as (found, folder):
        if present(name, home) and _events(home.optuna_uri, name) > _events(_manager(folder), name):
            raise UserError(
                f"{home.root} has more of study '{name}' than is to be fetched: it was continued here"
            )
        _replace(found, home, folder)
        _take_runs(name, home.alone, get, _chosen(found, checkpoints))
    return read_study(home.optuna_uri, name)


def take_over(name: str, home: Home) -> None:
    """Bring a study that another machine has continued into its home, as far as the home's storage has it.

    The study must be held, in the home and in the storage. Raises UserError where the storage cannot be read,
    or has another study of this name.
    """
    try:
        if home.storage and locations.exists(f"{home.stored(name)}/optuna.db"):
            with _fetched(name, home, from_storage(home.storage)) as (found, folder):
                is_here = present(name, home) is not None
                if not is_here or _events(home.optuna_uri, name) < _events(_manager(folder), name):
                    _replace(found, home, folder)
    except OSError as error:
        raise UserError(
            f"the storage {home.storage} cannot be read: {error}; `gpm-tune doctor` says more"
        ) from None


def stored_id(name: str, home: Home) -> str | None:
    """The id of the study that has a name in a home's storage; None where it has none, or no whole one.

    Raises OSError where the storage is away.
    """
    place = f"{home.stored(name)}/optuna.db"
    if not home.storage or not locations.exists(place):
        return None
    with tempfile.TemporaryDirectory() as folder, suppress(UserError):
        file = Path(folder) / "optuna.db"
        file.write_bytes(locations.read(place))
        return read_study(sqlite_uri(file), name).id
    return None


@contextmanager
def _fetched(name: str, home: Home, get: Get) -> Iterator[tuple[StudyRecord, Path]]:
    """A study as it is elsewhere, and a folder with its database and files.

    Raises UserError where there is none, or the home has another one of this name.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            for path in ("optuna.db", *STUDY_FILES):
                get(f"studies/{name}/{path}", folder / path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and (folder / "study.yaml").exists():
                raise UserError(
                    f"study '{name}' cannot be fetched: version 0.1 has kept it\n{MIGRATE}"
                ) from None
            raise UserError(
                f"study '{name}' cannot be fetched: {error}. If it has just begun, try again in a minute"
            ) from None
        found = read_study(_manager(folder), name)
        for record in _records(_manager(folder), name):
            for place in (record.id, *(trial.run for trial in record.trials if trial.run)):
                if not PLAIN.fullmatch(place):  # who has written it may have meant another place
                    raise UserError(f"study '{name}' cannot be fetched: '{place}' is no name of a folder")
        here = present(name, home)
        if here and here.id != found.id:
            raise UserError(
                f"{home.root} has another study named '{name}'; use another folder (--home), or delete "
                f"it: gpm-tune delete {name}"
            )
        yield found, folder


def present(name: str, home: Home) -> StudyRecord | None:
    """The study as the home has it; None where it has none, or one whose copying was interrupted."""
    with suppress(UnfinishedError):
        return read_study(home.optuna_uri, name) if name in study_names(home.optuna_uri) else None
    return None


def _replace(found: StudyRecord, home: Home, folder: Path) -> None:
    """Put what was fetched in place of what the home has of the study."""
    for file in STUDY_FILES:
        _copy_plain(folder / file, home.study(found.name) / file)
    _copy_trials(_manager(folder), found.name, home)


def _manager(folder: Path) -> str:
    return sqlite_uri(folder / "optuna.db")


def _copy_plain(source: Path, target: Path, *, keep: bool = False) -> None:
    """Copy a file, or those of a folder, but no link: it would show, or write to, a file of this machine.

    keep: what is at the target stays as it is.
    """
    root = source if source.is_dir() else source.parent
    files = source.rglob("*") if source.is_dir() else [source]
    for file in sorted(files, key=lambda file: file.name == "checkpoint.json"):  # it vouches for the others
        place = target / file.relative_to(source)
        if is_plain(file, root) and not (keep and place.exists()):
            locations.send(file, str(place))


def _take_runs(name: str, home: Home, get: Get, chosen: set[int]) -> None:
    """Bring the training runs of a study's trials here, those of the chosen trials with their checkpoints."""
    runs, wanted, users = home.open_runs(), set(), dict[str, str]()
    for record in _records(home.optuna_uri, name):
        for trial in record.trials:
            if trial.run:
                users[trial.run] = run_user(record.id)
                if record.name == name and trial.number in chosen:
                    wanted.add(trial.run)
    for run, user in users.items():
        locations.write(f"{runs.location}/{run}/users/{user}", b"")  # for deletion
        for part in ("experiment.yaml", "evaluations", "samples", "checkpoints"):
            if part != "checkpoints" or run in wanted:
                _take_part(f"{run}/{part}", runs, get, keep=part != "checkpoints")


def _take_part(path: str, runs: Runs, get: Get, *, keep: bool) -> None:
    """Bring a part of a training run here, if there is one yet; a warning says what is left out."""
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / Path(path).name
        try:
            get(f"runs/{path}", fetched)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("%s is left out: %s; fetch again", path, error)
            return
        _copy_plain(fetched, Path(runs.location) / path, keep=keep)


def _records(storage: str, name: str) -> list[StudyRecord]:
    """Of both stages, as far as they are there."""
    confirmation = read_confirmation(storage, name)
    return [read_study(storage, name), *([confirmation] if confirmation else [])]


def _events(storage: str, name: str) -> int:
    """A number that grows with all that happens to a study: trials begin, are trained, and end."""
    trials = [trial for record in _records(storage, name) for trial in record.trials]
    return sum(1 + trial.step + (trial.ended is not None) for trial in trials)


def _chosen(record: StudyRecord, checkpoints: str) -> set[int]:
    """The numbers of the trials whose checkpoints are wanted."""
    if checkpoints == "all":
        return {trial.number for trial in record.trials}
    return {trial.number for trial in record.ranked()[:1]} if checkpoints == "best" else set()


def _copy_trials(source: str, name: str, home: Home) -> None:
    """The studies of both stages."""
    there, here = read_storage(source), open_storage(home.optuna_uri, Patience())
    assert there is not None, "the study was read from it"
    names = optuna.get_all_study_names(there)
    for stage in (name, name + CONFIRMATION):
        if stage not in names:
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
