"""Delivers what studies measure to MLflow from a background thread, through spools on disk."""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from gpm_tune.study.tracking.spool import Event, RunLog, Spool

__all__ = ["KEY_TAG", "RunLog", "Tracker"]

KEY_TAG = "gpm.run"
"""The MLflow tag that holds a run's key, by which the run is found again."""

_log = logging.getLogger("gpm_tune")

# MLflow's limits of one request, and of one parameter's length.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_TAGS_A_BATCH = 100
_LONGEST_PARAM = 6000

_GATHER = 0.5  # seconds to wait for more events before a delivery
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts to reach a silent server

_T = TypeVar("_T")


class Tracker:
    """Delivers measurements to MLflow: at least once, in order, without ever stopping a study.

    `with Tracker(...) as tracker:` starts the delivery, of what earlier processes left in the
    folder too; leaving it delivers the rest or, after a time, leaves it on disk. Only one process
    at a time may use a folder.
    """

    def __init__(
        self,
        spool_folder: Path,
        tracking_uri: str,
        experiment: str,
        artifact_root: str | None = None,
    ) -> None:
        """artifact_root: where a new MLflow experiment keeps artifacts; None lets MLflow decide."""
        self._folder = spool_folder
        self._sender = _Sender(tracking_uri, experiment, artifact_root)
        self._spools: dict[str, Spool] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()  # there may be something to deliver
        self._closing = threading.Event()  # deliver what there is, then stop
        self._expired = threading.Event()  # stop now
        self._thread = threading.Thread(target=self._work, name="gpm-tune-tracking", daemon=True)
        self._is_away = False
        self._refusals: set[tuple[str, str]] = set()

    def __enter__(self) -> Tracker:
        # Imported here and not in the thread: a module that two threads import at once can be
        # seen half made.
        _import_mlflow()
        with self._lock:
            for events in sorted(self._folder.glob("*/events.jsonl")):
                spool = Spool(events.parent)
                opening = spool.opening
                if opening is not None and opening.kind == "open":
                    self._spools.setdefault(opening.payload["key"], spool)
        self._wake.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_run(
        self,
        key: str,
        *,
        name: str,
        parent: str | None = None,
        params: Mapping[str, object],
        tags: Mapping[str, str],
    ) -> RunLog:
        """Open a run, or open it again: it becomes RUNNING and continues where it stands.

        key: unique and stable for life; no quotes (else ValueError). parent: another run's key.
        """
        if not key or re.search(r"['\"`\n]", key):
            raise ValueError(f"a run's key is not empty and has no quotes, not {key!r}")
        with self._lock:
            if key not in self._spools:
                self._spools[key] = Spool(Spool.folder_of(self._folder, key))
            spool = self._spools[key]
        texts = {param: str(value) for param, value in params.items()}
        opening = {"key": key, "name": name, "parent": parent, "params": texts, "tags": dict(tags)}
        spool.append("open", opening)
        self._wake.set()
        return RunLog(spool, self._wake)

    def close(self, timeout: float = 30.0) -> int:
        """Deliver for at most `timeout` seconds; the number of events that remain on disk."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._expired.set()
        with self._lock:
            return sum(spool.undelivered for spool in self._spools.values())

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while not self._expired.is_set():
            self._wake.clear()
            if self._deliver_all():
                pause = _FIRST_PAUSE
                if self._closing.is_set() and not self._wake.is_set():
                    return
                self._wake.wait()
                self._closing.wait(_GATHER)
            elif self._closing.is_set():
                self._expired.wait(_FIRST_PAUSE)
            else:
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _deliver_all(self) -> bool:
        """Whether everything that was pending is delivered."""
        with self._lock:
            spools = dict(self._spools)
        for key, spool in spools.items():
            if self._expired.is_set():
                return False
            try:
                self._deliver(key, spool, spools)
            except Exception as error:  # whatever MLflow raises, the study goes on
                self._say_away(error)
                self._sender.forget()
                with self._lock:  # the next attempt starts with the others
                    self._spools[key] = self._spools.pop(key)
                return False
        if any(spool.undelivered for spool in spools.values()):
            self._wake.set()  # a child's delivery may have rewound its parent
        if self._is_away:
            self._is_away = False
            _log.info("the tracking server %s is back: all is delivered", self._sender.address)
        return True

    def _deliver(self, key: str, spool: Spool, spools: Mapping[str, Spool]) -> None:
        limit = _METRICS_A_BATCH
        while spool.undelivered and not self._expired.is_set():
            run_id = self._sender.run_id(key, spools)  # may rewind the spool
            events = spool.pending(limit)
            batch = _leading_metrics(events) or events[:1]
            try:
                self._sender.send(run_id, spool, batch)
            except Exception as error:
                if not _is_rejection(error):
                    raise
                if len(batch) > 1:  # find the one at fault
                    limit = len(batch) // 2
                    continue
                self._say_refused(key, batch[0], error)
            spool.mark_delivered(len(batch))
            limit = _METRICS_A_BATCH

    def _say_refused(self, key: str, event: Event, error: Exception) -> None:
        if (key, str(error)) not in self._refusals:  # a deleted run refuses everything
            self._refusals.add((key, str(error)))
            _log.warning("MLflow refuses %s of run %s: %s", _describe(event), key, _say(error))

    def _say_away(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning(
                "the tracking server %s does not answer; everything is kept in %s and delivered later (%s)",
                self._sender.address,
                self._folder,
                _say(error),
            )


class _Sender:
    """The calls to MLflow. Used by the delivery thread alone; raises what MLflow raises."""

    def __init__(self, tracking_uri: str, experiment: str, artifact_root: str | None) -> None:
        self.address = without_login(tracking_uri)
        self._uri = tracking_uri
        self._experiment = experiment
        self._artifact_root = artifact_root
        self._client: Any = None
        self._experiment_id = ""
        self._run_ids: dict[str, str] = {}

    def forget(self) -> None:
        """Look everything up again, because a server that comes back may have lost something."""
        self._client = None
        self._experiment_id = ""
        self._run_ids.clear()

    def run_id(self, key: str, spools: Mapping[str, Spool]) -> str:
        """The MLflow run of a key: found by its tag, or made from its spool."""
        if key not in self._run_ids:
            self._connect()
            run_id = self._find_run(key)
            if run_id is None:
                spools[key].rewind()
                run_id = self._create_run(key, spools)
            self._run_ids[key] = run_id
        return self._run_ids[key]

    def send(self, run_id: str, spool: Spool, batch: Sequence[Event]) -> None:
        """Send metrics events together, or one event of another kind; sending again is harmless."""
        event = batch[0]
        if event.kind == "metrics":
            self._send_metrics(run_id, batch)
        elif event.kind == "open":
            self._client.update_run(run_id, status="RUNNING")
            self._send_tags(run_id, event.payload["tags"])
            self._send_params(run_id, event.payload["params"])
        elif event.kind == "tags":
            self._send_tags(run_id, event.payload["tags"])
        elif event.kind == "artifact":
            path = event.payload["path"]
            folder = str(PurePosixPath(path).parent)
            file = spool.artifact(path)
            if not file.is_file():
                raise _RejectedError(f"{file} is missing")
            self._client.log_artifact(run_id, str(file), None if folder == "." else folder)
        elif event.kind == "curve":
            self._send_curve(run_id, event)
        elif event.kind == "model":
            self._register(run_id, event.payload["model"], event.payload["tags"])
        elif event.kind == "end":
            self._client.set_terminated(run_id, event.payload["status"], event.time)
        else:
            raise _RejectedError("the spool's line is unreadable")

    def _send_metrics(self, run_id: str, batch: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, event.time, event.payload["step"])
            for event in batch
            for name, value in event.payload["values"].items()
        ]
        for part in _parts(metrics, _METRICS_A_BATCH):
            self._client.log_batch(run_id, metrics=part)

    def _send_curve(self, run_id: str, event: Event) -> None:
        from mlflow.entities import Metric

        name, points = event.payload["name"], event.payload["points"]
        metrics = [Metric(name, value, event.time, int(x)) for x, value in points.items()]
        self._client.log_batch(run_id, metrics=metrics)

    def _register(self, run_id: str, model: str, tags: Mapping[str, str]) -> None:
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

    def _send_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(name, value[:_LONGEST_PARAM]) for name, value in params.items()]
        for part in _parts(entities, _PARAMS_A_BATCH):
            self._client.log_batch(run_id, params=part)

    def _send_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        for part in _parts(entities, _TAGS_A_BATCH):
            self._client.log_batch(run_id, tags=part)

    def _connect(self) -> None:
        if self._client is None:
            if self._uri.startswith("sqlite:///"):
                database = Path(self._uri.removeprefix("sqlite:///"))
                database.parent.mkdir(parents=True, exist_ok=True)
            mlflow = _import_mlflow()
            self._client = mlflow.tracking.MlflowClient(tracking_uri=self._uri)
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

    def _find_run(self, key: str) -> str | None:
        runs = self._client.search_runs(
            [self._experiment_id],
            f"tags.`{KEY_TAG}` = '{key}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        return str(runs[0].info.run_id) if runs else None

    def _create_run(self, key: str, spools: Mapping[str, Spool]) -> str:
        opening = spools[key].opening
        assert opening is not None, "a run is asked for when it has events"
        tags = {KEY_TAG: key}
        parent = opening.payload["parent"]
        if parent is not None:
            parent_id = self.run_id(parent, spools) if parent in spools else self._find_run(parent)
            if parent_id is None:
                _log.warning("run %s is tracked without its parent %s: no such run", key, parent)
            else:
                tags["mlflow.parentRunId"] = parent_id
        run = self._client.create_run(
            self._experiment_id,
            start_time=opening.time,
            tags=tags,
            run_name=opening.payload["name"],
        )
        return str(run.info.run_id)


class _RejectedError(Exception):
    """An event that can never be delivered."""


def _is_rejection(error: Exception) -> bool:
    """Whether MLflow would refuse the same event every time."""
    code = getattr(error, "error_code", None)
    return isinstance(error, _RejectedError) or code == "INVALID_PARAMETER_VALUE"


def _leading_metrics(events: Sequence[Event]) -> list[Event]:
    """The first events, as long as they are metrics and fit into one request."""
    batch: list[Event] = []
    size = 0
    for event in itertools.takewhile(lambda event: event.kind == "metrics", events):
        size += len(event.payload["values"])
        if batch and size > _METRICS_A_BATCH:
            break
        batch.append(event)
    return batch


def _describe(event: Event) -> str:
    step = event.payload.get("step")
    detail = event.payload.get("path") or ("" if step is None else f"of step {step}")
    return f"the event {event.kind!r} {detail}".rstrip()


def _say(error: Exception) -> str:
    """The error's first line, without the store's password."""
    return without_login(str(error).partition("\n")[0])[:300]


def without_login(text: str) -> str:
    """A text in which URIs have no user names and passwords."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _parts(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _import_mlflow() -> Any:
    """MLflow without telemetry, long retries and chatter; settings of the user's stand."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow
    import mlflow.tracking

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # They complain of each failed attempt; the tracker says once that the store is away.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow
