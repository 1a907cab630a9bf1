"""The on-disk record of one run's tracking events: appended once, read in order, never changed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ONCE = ("best", "curve")
"""Kinds of events that say what holds from now on: said again, they change nothing."""


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run; `time` is when it was recorded, in milliseconds."""

    kind: str
    time: int
    payload: Mapping[str, Any]


class Spool:
    """One run's events in a folder, and how many of them were delivered.

    events.jsonl   one event a line
    artifacts/     the bytes of artifact events, at the artifacts' paths
    delivered      number of events delivered

    Threads may share a spool; of several processes only one may append. Methods that write
    raise OSError where the disk does not take it.
    """

    def __init__(self, folder: Path) -> None:
        """Open the spool in the folder, or start one."""
        self.folder = folder
        self._lock = threading.Lock()
        self._events = folder / "events.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._events.touch()
        data = self._events.read_bytes()
        # A crash may have cut the last line short: what follows the last newline does not count.
        self._size = data.rfind(b"\n") + 1
        lines = data[: self._size].splitlines(keepends=True)
        self._recorded = len(lines)
        self._delivered = min(self._read_delivered(), self._recorded)
        self._offset = sum(map(len, lines[: self._delivered]))
        events = [_parse(line) for line in lines]
        self._last_step = _last_step(events)
        self._last_time = max((event.time for event in events), default=0)
        self._once = {event.kind: event.payload for event in events if event.kind in ONCE}

    @staticmethod
    def folder_of(root: Path, key: str) -> Path:
        """Folder of the run with this key, safe on every file system and unlike any other's."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-")[:80]
        return root / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    @property
    def opening(self) -> Event | None:
        """The event that opened the run first; None in a spool that nothing was written to."""
        with self._lock:
            return next(iter(self._read(0, 1)), None)

    @property
    def undelivered(self) -> int:
        """Number of events yet to be delivered."""
        return self._recorded - self._delivered

    def append(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Record an event of now."""
        with self._lock:
            self._append(kind, payload)

    def append_metrics(self, step: int, values: Mapping[str, float]) -> bool:
        """Record measurements at a step; False for a replay: a step recorded before, or older."""
        with self._lock:
            if self._last_step is not None and step <= self._last_step:
                return False
            self._append("metrics", {"step": step, "values": values})
            self._last_step = step
            return True

    def append_once(self, kind: str, payload: Mapping[str, Any]) -> bool:
        """Record an event of one of the kinds in ONCE; False where it repeats the last of its kind."""
        with self._lock:
            if self._once.get(kind) == payload:
                return False
            self._append(kind, payload)
            self._once[kind] = payload
            return True

    def append_artifact(self, path: str, content: bytes) -> None:
        """Record a file; raises ValueError if the path is not relative or leaves the run."""
        parts = PurePosixPath(path)
        if not parts.name or parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"an artifact's path is relative and without '..', not {path!r}")
        file = self.artifact(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            _replace(file, content)
            self._append("artifact", {"path": path})

    def artifact(self, path: str) -> Path:
        """The file that holds an artifact's bytes."""
        return self.folder / "artifacts" / path

    def pending(self, limit: int) -> list[Event]:
        """The first events not delivered yet, oldest first."""
        with self._lock:
            return self._read(self._offset, limit)

    def mark_delivered(self, count: int) -> None:
        """Count the first `count` pending events as delivered."""
        with self._lock, self._events.open("rb") as file:
            file.seek(self._offset)
            self._offset += sum(map(len, itertools.islice(file, count)))
            self._write_delivered(self._delivered + count)

    def rewind(self) -> None:
        """Count every event as undelivered, for a tracking server that lost the run."""
        with self._lock:
            self._offset = 0
            self._write_delivered(0)

    def _append(self, kind: str, payload: Mapping[str, Any]) -> None:
        # Later events have later times, whatever the clock does: MLflow takes the latest value of a step.
        self._last_time = max(time.time_ns() // 1_000_000, self._last_time + 1)
        event = {"kind": kind, "time": self._last_time, "payload": dict(payload)}
        line = json.dumps(event).encode() + b"\n"
        with self._events.open("r+b") as file:
            # Writing at the end of the last whole line buries a line that an earlier write cut.
            file.truncate(self._size)
            file.seek(self._size)
            file.write(line)
        self._size += len(line)
        self._recorded += 1

    def _read(self, offset: int, limit: int) -> list[Event]:
        with self._events.open("rb") as file:
            file.seek(offset)
            lines = list(itertools.islice(file, limit))
        return [_parse(line) for line in lines if line.endswith(b"\n")]

    def _read_delivered(self) -> int:
        try:
            return max(0, int((self.folder / "delivered").read_text()))
        except (FileNotFoundError, ValueError):
            return 0  # delivering again is harmless, losing events is not

    def _write_delivered(self, count: int) -> None:
        _replace(self.folder / "delivered", str(count).encode())
        self._delivered = count


def _replace(file: Path, content: bytes) -> None:
    part = file.with_name(file.name + ".part")
    part.write_bytes(content)
    os.replace(part, file)  # noqa: PTH105 (the name of the guarantee: atomic)


def _parse(line: bytes) -> Event:
    """The event in a line; one of kind "unreadable" where a failing disk left no event."""
    try:
        fields = json.loads(line)
        return Event(str(fields["kind"]), int(fields["time"]), dict(fields["payload"]))
    except (ValueError, TypeError, KeyError):
        return Event("unreadable", 0, {})


def _last_step(events: list[Event]) -> int | None:
    """The last recorded step is the highest, because steps only rise."""
    return next((int(event.payload["step"]) for event in reversed(events) if event.kind == "metrics"), None)
