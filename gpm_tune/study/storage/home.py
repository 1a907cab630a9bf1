"""The one folder under which everything that a run writes lies."""

from __future__ import annotations

import os
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.paths import expand
from gpm_tune.study.storage.database import has_tables
from gpm_tune.training.run import Runs
from gpm_tune.uris import URI, sqlite_file, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

STUDY_FILES = ("study.yaml", "requirements.txt")  # of a study's folder
LONGEST_FILE = "optuna.db-journal"
SQLITE_PATH = 512  # bytes: MAX_PATHNAME of SQLite on Unix


class Home:
    """Where studies, their databases and caches are.

    mlflow.db, artifacts/        MLflow's default store
    optuna.db                    every study and its trials: the source of truth
    cache/                       statistics of real data, by content
    studies/NAME/                a study: study.yaml, requirements.txt
    runs/                        training runs: of trials, single experiments, teachers

    On a cluster it is on the disk of the machine that runs the study. Its nodes share the storage:

    data/, weights/              data sets' files, and Inception's weights, for nodes that lack them
    runs/                        training runs, in place of the home's
    studies/NAME/                what else the home has of a study: these files, and optuna.db
    """

    def __init__(
        self, root: Path | None, tracking_uri: str | None = None, storage: str | None = None
    ) -> None:
        """root: else $GPM_TUNE_HOME, else ./gpm-runs. tracking_uri: else $MLFLOW_TRACKING_URI.

        storage: a folder that all nodes share, or a bucket's URI; else $GPM_TUNE_STORAGE, else none.
        """
        self.root = expand(root or os.environ.get("GPM_TUNE_HOME") or "gpm-runs").resolve()
        from_environment = os.environ.get("MLFLOW_TRACKING_URI")
        self.tracking_uri = URI.chosen(
            tracking_uri or from_environment or sqlite_uri(self.root / "mlflow.db"), from_environment
        )
        shared = (storage or os.environ.get("GPM_TUNE_STORAGE") or "").rstrip("/")
        if "://" in shared and str(URI(shared)) != shared:
            raise UserError(
                "--storage: a URI with a login or a query would be written into logs; give the bucket alone, "
                "and the credentials where the machine keeps them (a role, or environment variables)"
            )
        # Nodes have other working folders.
        self.storage = (shared if "://" in shared else str(expand(shared).absolute())) if shared else None

    @property
    def alone(self) -> Home:
        """The home without its storage: only what lies in it."""
        found = copy(self)
        found.storage = None
        return found

    def check(self) -> None:
        """Raise UserError unless the folder can be written, or made."""
        if len(os.fsencode(self.root / LONGEST_FILE)) > SQLITE_PATH:
            raise UserError(
                f"{self.root}: the path is longer than SQLite takes, {SQLITE_PATH} bytes with its files; "
                "name a shorter one with --home, or GPM_TUNE_HOME"
            )
        place = existing(self.root)
        if not place.is_dir() or not os.access(place, os.W_OK):
            problem = "cannot be written" if place.is_dir() else "is no folder"
            raise UserError(f"{self.root}: {place} {problem}; name another one with --home, or GPM_TUNE_HOME")

    @property
    def artifact_root(self) -> str | None:
        """Where MLflow keeps artifacts; None where a server decides."""
        return str(self.root / "artifacts") if sqlite_file(self.tracking_uri.secret()) else None

    @property
    def is_tracked(self) -> bool:
        """Whether MLflow's store can be opened: a local one exists once something was tracked."""
        file = sqlite_file(self.tracking_uri.secret())
        return file is None or file.exists()

    def mlflow(self) -> MlflowClient:
        """MLflow's store, to be read and tidied; runs' contents come from the publisher."""
        self.check_tracking()
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri.secret())

    def check_tracking(self) -> None:
        """Raise UserError where MLflow's store is a file that is damaged, unreadable or foreign."""
        if file := sqlite_file(self.tracking_uri.secret()):
            has_tables(file, ("experiments", "runs"))

    @property
    def optuna_uri(self) -> str:
        """Optuna's storage."""
        return sqlite_uri(self.root / "optuna.db")

    @property
    def cache(self) -> Path:
        """Folder of statistics of the real data."""
        return self.root / "cache"

    def study(self, name: str) -> Path:
        """Folder of a study."""
        return self.root / "studies" / name

    def stored(self, name: str) -> str | None:
        """Where the storage has a study; None without a storage."""
        return f"{self.storage}/studies/{name}" if self.storage else None

    @property
    def runs(self) -> Runs:
        """Training runs."""
        return Runs(f"{self.storage or self.root}/runs", self.cache)

    def open_runs(self) -> Runs:
        """Training runs, whose folder is made where there is none."""
        if not locations.is_bucket(self.runs.location):
            Path(self.runs.location).mkdir(parents=True, exist_ok=True)
        return self.runs

    def stop_file(self, name: str) -> Path:
        """Where it is, the process that runs the study stops as at a first Ctrl-C."""
        return self.study(name) / "stop"


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists: where it would be made."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
