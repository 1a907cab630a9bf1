"""Optuna's storage, opened so that it waits where its database is busy or its disk full, and says so."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage

from gpm_tune.errors import UserError
from gpm_tune.patience import Patience, retry
from gpm_tune.study.storage.database import BUSY_SECONDS, explained, has_tables, is_writable, read_only
from gpm_tune.uris import sqlite_file

TABLES = {"studies", "trials", "study_user_attributes", "trial_user_attributes", "version_info"}


class PatientStorage(RDBStorage):
    """Optuna's storage in a SQLite file. Each call is a transaction: one that fails can be repeated."""

    def __init__(self, uri: str, patience: Patience, **options: Any) -> None:
        self.patience = patience
        self.file = _file(uri)
        super().__init__(uri, **options)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a storage that waits for its database, and says in a sentence what is wrong with it."""

    @wraps(method)
    def call(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return _said(
            self.file, lambda: self.patience.use(lambda: method(self, *arguments, **named), self.file)
        )

    return call


# Those with an underscore are what Optuna's own cache calls.
for _name in (
    *vars(BaseStorage),
    "_create_new_trial",
    "_get_trials",
    "_set_trial_param",
    "_get_best_trial_id",
):
    if callable(_method := getattr(RDBStorage, _name)) and not _name.startswith("__"):
        setattr(PatientStorage, _name, _patient(_method))


def open_storage(uri: str, patience: Patience) -> PatientStorage:
    """The storage, created where there is none; with a write-ahead log, as a study commits often.

    A commit then waits for no disk. Where power fails the last ones are lost, and the evaluations in
    them are measured again; where a process is killed nothing is. Raises UserError where it cannot be used,
    ScarcityError where it stays busy, or its disk full.
    """
    file = _file(uri)
    has_tables(file, TABLES)
    options = {"engine_kwargs": {"connect_args": {"timeout": BUSY_SECONDS}}}

    def create() -> PatientStorage:
        # Of two processes that create the tables of a new file at once one fails, and finds them then.
        return retry(
            lambda: PatientStorage(uri, patience, **options), _is_race, lambda _: None, patience.is_over
        )

    storage: PatientStorage = _said(file, lambda: patience.use(create, file))
    sqlalchemy.event.listen(storage.engine, "connect", _write_ahead)
    storage.engine.dispose()  # connections from now on are set
    return storage


def read_storage(uri: str, patience: Patience | None = None) -> PatientStorage | None:
    """The storage to be read, also by who has no right to write it; None where there is none yet.

    patience: None to wait for minutes. Raises as `open_storage` does.
    """
    file = _file(uri)
    if not has_tables(file, TABLES):
        return None
    engine: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
    if not is_writable(file):
        engine = {"creator": lambda: read_only(file)}
    patience = patience or Patience()
    storage: PatientStorage = _said(
        file,
        lambda: patience.use(
            lambda: PatientStorage(uri, patience, engine_kwargs=engine, skip_table_creation=True), file
        ),
    )
    return storage


def _file(uri: str) -> Path:
    file = sqlite_file(uri)
    assert file is not None, "Optuna's storage is a file of the home"
    return file


def _is_race(error: Exception) -> bool:
    found = getattr(error, "orig", None)
    return isinstance(found, sqlite3.IntegrityError) or "already exists" in str(found)


def _write_ahead(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _said(file: Path, call: Callable[[], Any]) -> Any:
    """Call it; what it has against the file is a UserError."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        reason = explained(error, file)
        if reason is None:
            raise
        raise reason from error
