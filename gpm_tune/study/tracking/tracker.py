"""Delivers what studies measure to MLflow from a background thread, through spools on disk."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gpm_tune.errors import first_line
from gpm_tune.files import is_plain
from gpm_tune.patience import Patience
from gpm_tune.study.tracking.sender import (
    METRICS,
    METRICS_A_BATCH,
    Sender,
    cure,
    import_for_delivery,
    is_rejection,
)
from gpm_tune.study.tracking.spool import Event, Spool
from gpm_tune.uris import URI, without_secrets

BEST = "best/"
"""Begins the names of metrics whose last value is that of the best evaluation, and not of the last one."""
BY_NFE = "_by_nfe"
"""Ends the names of curves, whose steps are NFE."""

STATUSES = ("FINISHED", "FAILED", "KILLED")
"""How a run can end, in MLflow's words."""

T = TypeVar("T")
_log = logging.getLogger("gpm_tune")

_GATHER = 0.5  # seconds to wait for more events before a delivery
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts to reach a silent server


class Tracker:
    """Delivers measurements to MLflow: at least once, in order, without ever stopping a study.

    `with Tracker(...) as tracker:` starts the delivery, of what earlier processes left in the
    folder too; leaving it delivers the rest or, after a time, leaves it on disk. Only one process
    at a time may use a folder.
    """

    def __init__(
        self,
        spool_folder: Path,
        tracking_uri: URI,
        experiment: str,
        artifact_root: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        """artifact_root: where a new MLflow experiment keeps artifacts; None lets MLflow decide.

        patience: with a disk that is full; until its end, if None.
        """
        self._folder = spool_folder
        self._patience = patience or Patience()
        self._sender = Sender(tracking_uri, experiment, artifact_root)
        self._spools: dict[str, Spool] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()  # there may be something to deliver
        self._closing = threading.Event()  # deliver what there is, then stop
        self._expired = threading.Event()  # stop now
        self._thread = threading.Thread(target=self._work, name="gpm-tune-tracking", daemon=True)
        self._is_away = False
        self._refusals: set[tuple[str, str]] = set()

    def __enter__(self) -> Tracker:
        import_for_delivery(self._sender.address.secret())
        with self._lock:
            for events in sorted(self._folder.glob("*/events.jsonl")):
                if not is_plain(events, self._folder):
                    continue
                spool = Spool(events.parent)
                opening = spool.opening
                if opening is not None and opening.kind == "open":
                    self._spools.setdefault(opening.payload["key"], spool)
        self._wake.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        left = self.close()
        if left:
            where = self._sender.address
            _log.warning("%d events are not in %s yet; the same command again delivers them", left, where)

    def open_run(
        self,
        key: str,
        *,
        name: str,
        parent: str | None = None,
        params: Mapping[str, object] = {},
        tags: Mapping[str, str] = {},
    ) -> RunLog:
        """Open a run, or open it again: it becomes RUNNING and continues where it stands.

        key: unique and stable for life; no quotes (else ValueError). parent: another run's key.
        params: plain data; what is nested gets dotted names.
        """
        if not key or re.search(r"['\"`\n]", key):
            raise ValueError(f"a run's key is not empty and has no quotes, not {key!r}")
        folder = Spool.folder_of(self._folder, key)
        with self._lock:
            if key not in self._spools:
                self._spools[key] = self._patience.use(lambda: Spool(folder), folder)
            spool = self._spools[key]
        run = RunLog(spool, self._wake, self._patience)
        run.open({"key": key, "name": name, "parent": parent, "params": _flat(params), "tags": dict(tags)})
        return run

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
        limit = METRICS_A_BATCH
        while spool.undelivered and not self._expired.is_set():
            run_id = self._sender.run_id(key, spools)  # may rewind the spool
            events = spool.pending(limit)
            batch = _leading_metrics(events) or events[:1]
            try:
                self._sender.send(run_id, spool, batch)
            except Exception as error:
                if not is_rejection(error):
                    raise
                if len(batch) > 1:  # find the one at fault
                    limit = len(batch) // 2
                    continue
                self._say_refused(key, batch[0], error)
            spool.mark_delivered(len(batch))
            limit = METRICS_A_BATCH

    def _say_refused(self, key: str, event: Event, error: Exception) -> None:
        if (key, str(error)) not in self._refusals:  # a deleted run refuses everything
            self._refusals.add((key, str(error)))
            _log.warning("MLflow refuses %s of run %s: %s", _describe(event), key, _say(error))

    def _say_away(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning(
                "the tracking server %s %s; everything is kept in %s and delivered later (%s)",
                self._sender.address,
                "cannot be used" if cure(error) else "does not answer",
                self._folder,
                _say(error),
            )


class RunLog:
    """Records one run's events; they are on disk when a method returns, in MLflow later.

    Methods wait where the disk is full. They raise ScarcityError where it stays so, OSError where it does not
    take them for another reason, never an error of MLflow's.
    """

    def __init__(self, spool: Spool, wake: threading.Event, patience: Patience) -> None:
        self._spool = spool
        self._wake = wake
        self._patience = patience

    def open(self, opening: Mapping[str, Any]) -> None:
        """Record that the run is open, from now on or again."""
        self._append("open", opening)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record all measurements of a step at once.

        A step not above the last recorded one of this run is a replay (training resumed from a
        checkpoint before it) and is dropped.
        """
        numbers = {name: float(value) for name, value in values.items()}
        if self._record(lambda: self._spool.append_metrics(int(step), numbers)):
            self._wake.set()

    def best(self, step: int, values: Mapping[str, float]) -> bool:
        """Record the best values so far, e.g. of "fid" as "best/fid"; False for the same again.

        MLflow sorts runs by the last value of a metric: by these the best run is first.
        """
        named = {f"{BEST}{name}": float(value) for name, value in values.items()}
        is_new = self._record(lambda: self._spool.append_once("best", {"step": int(step), "values": named}))
        self._wake.set()
        return is_new

    def artifact(self, path: str, content: bytes) -> None:
        """Record a file, e.g. "samples/step_000500.png"; ValueError if the path leaves the run."""
        self._record(lambda: self._spool.append_artifact(path, content))
        self._wake.set()

    def curve(self, metric: str, points: Mapping[int, float]) -> None:
        """Record a metric against NFE, as METRIC_by_nfe; the same again changes nothing."""
        payload = {"name": f"{metric}{BY_NFE}", "points": {str(nfe): y for nfe, y in points.items()}}
        if self._record(lambda: self._spool.append_once("curve", payload)):
            self._wake.set()

    def register(self, model: str, tags: Mapping[str, str]) -> None:
        """Register the run's artifact `checkpoint` as a version of a model; with the same tags only once."""
        self._append("model", {"model": model, "tags": dict(tags)})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, over earlier values."""
        self._append("tags", {"tags": dict(tags)})

    def end(self, status: str) -> None:
        """End the run as "FINISHED", "FAILED" or "KILLED" (else ValueError)."""
        if status not in STATUSES:
            raise ValueError(f"a run ends as one of {', '.join(STATUSES)}, not {status!r}")
        self._append("end", {"status": status})

    def _append(self, kind: str, payload: Mapping[str, Any]) -> None:
        self._record(lambda: self._spool.append(kind, payload))
        self._wake.set()

    def _record(self, write: Callable[[], T]) -> T:
        return self._patience.use(write, self._spool.folder)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain data as texts with dotted keys, as MLflow's params want it."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
    return flat


def _leading_metrics(events: Sequence[Event]) -> list[Event]:
    """The first events, as long as they are metrics and fit into one request."""
    batch: list[Event] = []
    size = 0
    for event in itertools.takewhile(lambda event: event.kind in METRICS, events):
        size += len(event.payload["values"])
        if batch and size > METRICS_A_BATCH:
            break
        batch.append(event)
    return batch


def _describe(event: Event) -> str:
    step = event.payload.get("step")
    detail = event.payload.get("path") or ("" if step is None else f"of step {step}")
    return f"the event {event.kind!r} {detail}".rstrip()


def _say(error: Exception) -> str:
    """The error's first line, without the store's password."""
    return without_secrets(first_line(error))[:300]
