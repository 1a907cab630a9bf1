"""Keeps MLflow like the records, from a thread, whatever happens to MLflow meanwhile."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from gpm_tune.errors import first_line
from gpm_tune.study.tracking.sender import LONGEST_PARAM, Store, cure, import_for_delivery, is_rejection
from gpm_tune.study.tracking.views import CHANGING, View
from gpm_tune.uris import URI, without_secrets

PUBLISHED_TAG = "gpm.published"
"""Holds the digest of the view that a run shows; written last."""
PARENT_TAG = "mlflow.parentRunId"

GATHER = 5.0  # seconds to wait for more changes before a delivery
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts

T = TypeVar("T")
_log = logging.getLogger("gpm_tune")


@dataclass(frozen=True)
class _Delivered:
    """What this process knows to be in MLflow of a run."""

    digest: str | None = None
    points: frozenset[tuple[str, int, int]] = frozenset()  # name, time and step of each
    files: Mapping[str, str] = field(default_factory=dict)  # as View.marks


class Publisher:
    """Keeps MLflow like the records: a thread sends, of each run that was touched, what MLflow lacks.

    `with Publisher(...) as publisher:` starts the thread; leaving it delivers the rest or, after a time,
    leaves it to whoever publishes the same keys next. MLflow itself says what was delivered.
    """

    def __init__(
        self,
        tracking_uri: URI,
        experiment: str,
        view: Callable[[str], View | None],
        artifact_root: str | None = None,
    ) -> None:
        """view: derives a run's view from the records, in the thread, and may raise where they are away.

        artifact_root: where a new MLflow experiment keeps artifacts; None lets MLflow decide.
        """
        self._store = Store(tracking_uri, experiment, artifact_root)
        self._view = view
        self._lock = threading.Lock()
        self._touched: dict[str, object] = {}  # each key with what its latest touch alone has
        self._wake = threading.Event()  # there may be something to deliver
        self._closing = threading.Event()  # deliver what there is, then stop
        self._expired = threading.Event()  # stop now
        self._thread = threading.Thread(target=self._work, name="gpm-tune-tracking", daemon=True)
        self._run_ids: dict[str, str | None] = {}
        self._delivered: dict[str, _Delivered] = {}
        self._is_away = False
        self._texts: set[str] = set()  # that were said

    def __enter__(self) -> Publisher:
        import_for_delivery(self._store.address.secret())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        left = self.close()
        if left:
            runs = "1 run is" if left == 1 else f"{left} runs are"
            where = self._store.address
            _log.warning("%s not up to date in %s; the same command again delivers them", runs, where)

    def touch(self, *keys: str) -> None:
        """Say that the records of runs have changed. Cheap, from any thread.

        keys: not empty and without quotes, else ValueError.
        """
        for key in keys:
            if not key or re.search(r"['\"`\n]", key):
                raise ValueError(f"a run's key is not empty and has no quotes, not {key!r}")
        with self._lock:
            self._touched |= {key: object() for key in keys}
        self._wake.set()

    def close(self, timeout: float = 30.0) -> int:
        """Deliver for at most `timeout` seconds. Returns the number of keys that are not delivered."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._expired.set()
        with self._lock:
            return len(self._touched)

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while not self._expired.is_set():
            self._wake.clear()
            if self._deliver_all():
                pause = FIRST_PAUSE
                if self._closing.is_set() and not self._wake.is_set():
                    return
                self._wake.wait()
                self._closing.wait(GATHER)
            elif self._closing.is_set():
                self._expired.wait(FIRST_PAUSE)
            else:
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _deliver_all(self) -> bool:
        """Whether everything that was touched is delivered."""
        while not self._expired.is_set():
            with self._lock:
                key, touch = next(iter(self._touched.items()), ("", None))
            if touch is None:
                if self._is_away:
                    self._is_away = False
                    _log.info("the tracking server %s is back: all is delivered", self._store.address)
                return True
            is_delivered = self._try_to_deliver(key)
            with self._lock:
                latest = self._touched.pop(key)
                if not is_delivered or latest is not touch:
                    self._touched[key] = latest  # after the others
            if not is_delivered:
                return False
        return False

    def _try_to_deliver(self, key: str) -> bool:
        try:
            self._deliver(key)
            return True
        except Exception as error:  # whatever MLflow raises, the study goes on
            self._say_failed(error)
            self._delivered.pop(key, None)  # who knows how far it came
            self._store.forget()
            self._run_ids.clear()
            return False

    def _deliver(self, key: str) -> str | None:
        """Bring a run up to date, after its parent. Returns its id in MLflow, None where it has none."""
        view = self._read(lambda: self._view(key), f"run {key}")
        parent = self._parent_of(view) if view else None
        run = self._store.find(key)
        is_new = run is None
        if view and is_new:
            run = self._store.create(key, view.name, view.started)
        if view:
            self._update(run, view, parent, is_new=is_new)
        self._run_ids[key] = run.info.run_id if run else None
        return self._run_ids[key]

    def _parent_of(self, view: View) -> str | None:
        if view.parent is None:
            return None
        parent = self._run_ids.get(view.parent) or self._deliver(view.parent)
        if parent is None:
            self._say(f"run {view.key} is tracked without its parent {view.parent}: no such run")
        return parent

    def _update(self, run: Any, view: View, parent: str | None, *, is_new: bool) -> None:
        """Send what a run lacks; a run that shows the view already costs no call."""
        marks = self._read(view.marks, f"the files of run {view.key}")
        digest, published = view.digest(marks, parent), run.data.tags.get(PUBLISHED_TAG)
        if published == digest:
            return
        run_id, delivered = run.info.run_id, self._delivered.get(view.key, _Delivered())
        if delivered.digest != published:  # others have been here, or none to the end
            delivered = _Delivered()
        known = delivered.points
        params = {name: text[:LONGEST_PARAM] for name, text in _flat(view.params)}
        tags = {**view.tags, PARENT_TAG: parent} if parent else view.tags
        points = {(point.name, point.time, point.step): point.value for point in view.points}
        rows: list[tuple[Any, ...]] = [
            *(("params", *row) for row in params.items() - run.data.params.items()),
            *(("tags", *row) for row in tags.items() - run.data.tags.items()),
            *(("metrics", name, y, *at) for (name, *at), y in points.items() if (name, *at) not in known),
        ]
        self._log(run_id, view.key, rows)
        lacking = [path for path, mark in marks.items() if delivered.files.get(path) != mark]
        self._send_files(run_id, view, lacking, none_is_there=is_new or delivered.digest is not None)
        for version in view.versions:
            with self._refusable(f"a version of model {version.model}", view.key):
                self._store.register(run_id, version.model, version.tags)
        if run.info.status != view.status or (view.ended is not None and run.info.end_time != view.ended):
            self._store.end(run_id, view.status, view.ended)
        self._log(run_id, view.key, [("tags", PUBLISHED_TAG, digest)])
        self._delivered[view.key] = _Delivered(digest, frozenset(points), marks)

    def _log(self, run_id: str, key: str, rows: list[tuple[Any, ...]]) -> None:
        for (kind, name, *_), error in self._store.log(run_id, rows) if rows else ():
            self._say_refused(f"{name!r} of the {kind}", key, error)

    def _send_files(self, run_id: str, view: View, paths: Sequence[str], *, none_is_there: bool) -> None:
        """Send those files that MLflow does not have whole: a copy may have been cut short.

        none_is_there: MLflow is known to have none of them, and need not be asked.
        """
        if not paths:
            return
        folders = {str(PurePosixPath(path).parent) for path in paths}
        sizes = {} if none_is_there else self._store.sizes(run_id, folders)
        with TemporaryDirectory() as folder:
            for path in paths:
                try:
                    content = self._read(view.files[path], f"{path} of run {view.key}")
                except FileNotFoundError as error:
                    self._say(f"{path} of run {view.key} is not tracked: {_said(error)}")
                    continue
                if path in CHANGING or sizes.get(path) != len(content):
                    file = Path(folder, path)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
            if any(Path(folder).iterdir()):
                with self._refusable("files", view.key):
                    self._store.upload(run_id, folder)

    def _read(self, read: Callable[[], T], what: str) -> T:
        """Read records. Raises FileNotFoundError, or else UnreadableError."""
        try:
            return read()
        except FileNotFoundError:
            raise
        except Exception as error:
            raise UnreadableError(f"{what} cannot be read now ({_said(error)})") from error

    @contextmanager
    def _refusable(self, what: str, key: str) -> Iterator[None]:
        """Go on where MLflow would refuse the same every time."""
        try:
            yield
        except Exception as error:
            if not is_rejection(error):
                raise
            self._say_refused(what, key, error)

    def _say_refused(self, what: str, key: str, error: Exception) -> None:
        self._say(f"MLflow refuses {what} of run {key}: {_said(error)}")

    def _say_failed(self, error: Exception) -> None:
        if isinstance(error, UnreadableError):
            self._say(f"{error}; MLflow is brought up to date later")
        elif not self._is_away:
            self._is_away = True
            state = "cannot be used" if cure(error) else "does not answer"
            _log.warning(
                "the tracking server %s %s; it is brought up to date later (%s)",
                self._store.address,
                state,
                _said(error),
            )

    def _say(self, text: str) -> None:
        if text not in self._texts:
            self._texts.add(text)
            _log.warning("%s", text)


class UnreadableError(Exception):
    """Records that are away: their storage is busy, or cannot be reached."""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested plain data as texts with dotted names, as MLflow's params want it."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def _said(error: Exception) -> str:
    """The error's first line, without the store's password."""
    return without_secrets(first_line(error))[:300]
