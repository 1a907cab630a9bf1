"""A study's results in the storage of its cluster, so that they outlive the machine that ran it."""

from __future__ import annotations

import logging
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpm_tune import locations
from gpm_tune.lease import LeaseLostError
from gpm_tune.study.storage.home import STUDY_FILES, Home

PUSH_EVERY = 60.0  # seconds
LAST_ATTEMPTS = 10  # to push at the end
PAUSE = 6.0  # seconds between them

_log = logging.getLogger("gpm_tune")


class Mirror:
    """Copies what lies in the home only to the storage, every minute and at the end.

    Training runs are there already: trials write them. Without a storage it does nothing.
    """

    def __init__(self, home: Home, name: str, check: Callable[[], object] = bool) -> None:
        """check: raises LeaseLostError where the study in the storage is another process's by now."""
        self._check = check
        self._home = home
        self._name = name
        self._stored = home.stored(name)
        self._pushed: dict[str, bytes] = {}  # contents of files in the storage
        self._leaving = threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._work, name="gpm-tune-mirror", daemon=True)

    def __enter__(self) -> Mirror:
        if self._stored:
            import pyarrow.fs  # noqa: F401 (before the thread does it: two at once may see it half made)

            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stored:
            self._leaving.set()
            self._thread.join()
            for _attempt in range(LAST_ATTEMPTS):
                if self._push():
                    return
                time.sleep(PAUSE)
            _log.error(
                "the storage %s does not have everything; keep %s: the same command copies the rest",
                self._stored,
                self._home.root,
            )

    def _work(self) -> None:
        while not self._leaving.wait(PUSH_EVERY):
            self._push()

    def _push(self) -> bool:
        """Whether the storage has everything, or is not to have it."""
        try:
            self._check()
            self._home.runs.check()
            for name in STUDY_FILES:
                self._push_file(self._home.study(self._name) / name)
            self._push_trials()  # last: it says that the rest is there
        except LeaseLostError as error:
            _log.warning("%s", error)
        except Exception as error:  # whatever is wrong there, the study goes on
            if not self._is_away:
                self._is_away = True
                _log.warning(
                    "the storage %s is away; results are kept in %s and copied later (%s)",
                    self._stored,
                    self._home.root,
                    error,
                )
            return False
        if self._is_away:
            self._is_away = False
            _log.warning("the storage %s is back: all is copied", self._stored)
        return True

    def _push_trials(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "optuna.db"
            snapshot(self._home.root / "optuna.db", copy)
            locations.write(f"{self._stored}/optuna.db", copy.read_bytes())

    def _push_file(self, file: Path) -> None:
        content = file.read_bytes()
        if self._pushed.get(file.name) != content:
            locations.write(f"{self._stored}/{file.name}", content)
            self._pushed[file.name] = content


def snapshot(database: Path, copy: Path) -> None:
    """Copy a SQLite database as it is between two transactions, while others write to it."""
    source: Any = sqlite3.connect(database)
    target: Any = sqlite3.connect(copy)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()
