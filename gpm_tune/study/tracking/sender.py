"""The calls to MLflow that bring its runs up to date."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from filelock import FileLock

from gpm_tune.errors import UserError
from gpm_tune.uris import URI, sqlite_file, sqlite_uri, without_secrets

KEY_TAG = "gpm.run"
"""The MLflow tag that holds a run's key, by which the run is found again."""

# What MLflow imports at its first calls, by the kind of its store.
OF_SERVERS = (
    "mlflow.tracking.request_header.registry",
    "mlflow.tracking.request_header.databricks_request_header_provider",
    "mlflow.tracking.request_header.default_request_header_provider",
    "netrc",
)
OF_DATABASES = (
    "alembic.command",
    "alembic.config",
    "mako.template",
    "mlflow.utils.search_logged_model_utils",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.utils.search_logged_model_utils",
)

LONGEST_PARAM = 6000  # that MLflow takes
LONGEST_REASON = 600  # characters of what MLflow says

_log = logging.getLogger("gpm_tune")


class Store:
    """An experiment in MLflow's store, for use by one thread. Raises what MLflow raises."""

    def __init__(self, tracking_uri: URI, experiment: str, artifact_root: str | None) -> None:
        """artifact_root: where a new experiment keeps artifacts; None lets MLflow decide."""
        self.address = tracking_uri
        self._experiment = experiment
        self._artifact_root = artifact_root
        self._client: Any = None
        self._experiment_id = ""

    def forget(self) -> None:
        """Connect again, because a server that comes back may have lost something."""
        self._client = None
        self._experiment_id = ""

    def find(self, key: str) -> Any | None:
        """The run of a key, if there is one that is not deleted.

        Of two, which publishers on two machines created at once, the same one is kept by both.
        """
        self._connect()
        runs = self._client.search_runs(
            [self._experiment_id], f"tags.`{KEY_TAG}` = '{key}'", order_by=["attributes.start_time ASC"]
        )
        for other in runs[1:]:
            self._client.delete_run(other.info.run_id)
        return next(iter(runs), None)

    def create(self, key: str, name: str, started: int) -> Any:
        """A new run. started: in ms."""
        self._client.create_run(self._experiment_id, start_time=started, tags={KEY_TAG: key}, run_name=name)
        return self.find(key)

    def log(self, run_id: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, Exception]]:
        """Send rows, the same again changes nothing. Returns refused ones, and why.

        rows: "metrics" with name, value, time and step of a point; "params" or "tags" with name and text.
        """
        from mlflow.entities import Metric, Param, RunTag

        makes = {"metrics": Metric, "params": Param, "tags": RunTag}
        batch = {kind: [make(*row) for of, *row in rows if of == kind] for kind, make in makes.items()}
        try:
            self._client.log_batch(run_id, **batch)  # in requests of a size that MLflow takes
            return []
        except Exception as error:
            if not is_rejection(error):
                raise
            if len(rows) == 1:
                return [(rows[0], error)]
        half = len(rows) // 2  # to find those at fault
        return self.log(run_id, rows[:half]) + self.log(run_id, rows[half:])

    def sizes(self, run_id: str, folders: Iterable[str]) -> dict[str, int]:
        """The artifacts in some folders ("." is the topmost one), each with its size in bytes."""
        paths = (None if folder == "." else folder for folder in folders)
        found = [file for path in paths for file in self._client.list_artifacts(run_id, path)]
        return {file.path: file.file_size for file in found if not file.is_dir}

    def upload(self, run_id: str, folder: str) -> None:
        """Send all files below a folder of this machine as artifacts of the same paths."""
        self._client.log_artifacts(run_id, folder)

    def end(self, run_id: str, status: str, ended: int | None) -> None:
        """Set the status of a run. ended: in ms; None for one that is running."""
        if ended is None:
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status, ended)

    def register(self, run_id: str, model: str, tags: Mapping[str, str]) -> None:
        """Make the run's artifact `checkpoint` a version of a model; with the same tags only once."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self._client.search_model_versions(f"name = '{model}'")
        if not any(found.run_id == run_id and found.tags == dict(tags) for found in known):
            source = f"{self._client.get_run(run_id).info.artifact_uri}/checkpoint"
            self._client.create_model_version(model, source, run_id, tags=dict(tags))

    def _connect(self) -> None:
        if self._client is None:
            uri = self.address.secret()
            alone: AbstractContextManager[object] = nullcontext()
            if database := sqlite_file(uri):
                database.parent.mkdir(parents=True, exist_ok=True)
                alone = FileLock(f"{database}.lock")
            mlflow = import_mlflow()
            with alone:  # MLflow fails where two processes make its tables at once
                if database and not database.exists():
                    make_tables(database)
                self._client = mlflow.tracking.MlflowClient(tracking_uri=uri)
                self._experiment_id = self._find_experiment() or self._create_experiment()

    def _find_experiment(self) -> str | None:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            return None
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _create_experiment(self) -> str:
        root = self._artifact_root
        if root is not None and "://" not in root:
            root = Path(root).resolve().as_uri()
        try:
            return str(self._client.create_experiment(self._experiment, artifact_location=root))
        except Exception:
            found = self._find_experiment()  # another process was faster
            if found is None:
                raise
            return found


def make_tables(database: Path) -> None:
    """Let MLflow make a new database's tables beside it: its many steps may be cut short, for good."""
    part = database.with_name(f"{database.name}.part")
    part.unlink(missing_ok=True)
    import_mlflow().tracking.MlflowClient(tracking_uri=sqlite_uri(part))
    part.rename(database)


def is_rejection(error: Exception) -> bool:
    """Tell whether MLflow would refuse the same every time."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def check_store(store: URI) -> None:
    """Raise UserError where MLflow's store can never be used; one that is away may come back.

    A file is left alone: of two processes that open a new one at once MLflow fails in one.
    """
    if sqlite_file(store.secret()):
        return
    mlflow = import_mlflow()
    try:
        mlflow.tracking.MlflowClient(tracking_uri=store.secret()).search_experiments(max_results=1)
    except Exception as error:
        advice = cure(error)
        if advice is None:
            return
        reason = " ".join(without_secrets(str(error)).split())
        raise UserError(
            f"MLflow's store {store} cannot be used: {reason[:LONGEST_REASON]}\nhelp: {advice}"
        ) from None


def cure(error: Exception) -> str | None:
    """What to do about a store of MLflow's that can never be used; None for one that may come back."""
    code = getattr(error, "error_code", None)
    if isinstance(error, ImportError):
        return f"install the package with the database's driver, {error.name}, beside gpm-tune"
    if "Invalid Host" in str(error):
        return "start the server with --allowed-hosts and the name by which it is called here"
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if code in ("INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND") or isinstance(error, ValueError):
        return "give --tracking-uri, or MLFLOW_TRACKING_URI, http://SERVER:PORT or sqlite:///FILE"
    return None


def import_for_delivery(tracking_uri: str) -> None:
    """Import all that a delivery imports, MLflow and what it loads later, before a thread does it.

    A module that two threads import at once can be seen half made: matplotlib, for one, looks whether
    IPython is there, which MLflow imports where it is installed.
    """
    import_mlflow()
    is_server = tracking_uri.startswith("http")
    migrations = (
        () if is_server else iter_modules(import_module("mlflow.store.db").__path__, "mlflow.store.db.")
    )
    later = OF_SERVERS if is_server else (*OF_DATABASES, *(module.name for module in migrations))
    for name in ("IPython", *later):
        with suppress(ImportError):  # another version of MLflow may do without
            import_module(name)
    if not is_server:
        from sqlalchemy import make_url

        with suppress(Exception):  # what is wrong with the URI is said by the delivery
            make_url(tracking_uri).get_dialect().import_dbapi()


def import_mlflow() -> Any:
    """MLflow without long retries and chatter; settings of the user's stand."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    import mlflow.tracking

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # They complain of each failed attempt; the publisher says once that the store is away.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow
