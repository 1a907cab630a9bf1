"""What the processes of a simulation share, each service in the memory of the simulator: a bucket, Optuna's
storage, and a tracking server.

What is assumed of them: a bucket's file is there as a whole, once it was written, for all who look then; a
folder is what lies below it. Optuna's storage takes each call as a whole, in the order of the calls, and
returns what JSON makes of what it was given. The tracking server does, too; it may have taken what
it does not answer.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.study._frozen import FrozenStudy

from gpm_tune import locations
from gpm_tune.study.tracking.sender import KEY_TAG
from simulation.world import World


class Bucket:
    """In place of the functions of `gpm_tune.locations` that reach a bucket."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.files: dict[str, bytes] = {}
        self._names: dict[str, set[str]] = {}  # of what lies in each folder

    def functions(self) -> dict[str, Callable[..., Any]]:
        """By their names in `gpm_tune.locations`."""
        names = ("children", "exists", "read", "write", "send", "copy", "delete", "delete_file")
        return {name: getattr(self, name) for name in names}

    def _step(self, what: str, location: str) -> None:
        assert location.rfind("//") < 6, f"{location} is no place"
        self.world.step(f"{what} {location}", "the bucket")

    def children(self, location: str) -> list[str]:
        if not locations.is_bucket(location):
            return sorted(path.name for path in Path(location).glob("*"))
        self._step("lists", location)
        return sorted(self._names.get(location, ()))

    def exists(self, location: str) -> bool:
        self._step("looks for", location)
        return location in self.files or location in self._names

    def read(self, location: str) -> bytes:
        self._step("reads", location)
        if location not in self.files:
            raise FileNotFoundError(location)
        return self.files[location]

    def write(self, location: str, content: bytes) -> None:
        if not locations.is_bucket(location):
            Path(location).parent.mkdir(parents=True, exist_ok=True)
            Path(location).write_bytes(content)
            return
        self._step("writes", location)
        self.files[location] = content
        self._note(location)
        self.world.answer(f"writes {location}")

    def send(self, file: Path, location: str) -> None:
        self.write(location, file.read_bytes())

    def copy(self, source: str, destination: str) -> None:
        files = [place for place in sorted(self.files) if place.startswith(f"{source}/")]
        if not files:
            self._step("copies", source)
            raise FileNotFoundError(source)
        for place in files:
            self.write(f"{destination}{place[len(source) :]}", self.read(place))

    def delete(self, location: str) -> None:
        for place in [place for place in self.files if place.startswith(f"{location}/")]:
            self.delete_file(place)

    def delete_file(self, location: str) -> None:
        self._step("deletes", location)
        if self.files.pop(location, None) is not None:
            self._forget(location)

    def _note(self, location: str) -> None:
        """Let what is there now be in its folder, and that in its own."""
        folder, _, name = location.rpartition("/")
        if name and name not in self._names.setdefault(folder, set()):
            self._names[folder].add(name)
            self._note(folder)

    def _forget(self, location: str) -> None:
        """Let what was there be in its folder no more, which ends with the last of its contents."""
        folder, _, name = location.rpartition("/")
        if name:
            self._names[folder].remove(name)
            if not self._names[folder]:
                del self._names[folder]
                self._forget(folder)


class Storage(optuna.storages.InMemoryStorage):
    """Optuna's storage, which processes do not lose with their memory."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write(f"keeps {key} of the study", super().set_study_user_attr, study_id, key, _plain(value))

    def get_all_studies(self) -> list[FrozenStudy]:
        """As Optuna's, which copies what nobody changes: for speed alone."""
        found = self._studies.items()
        return [
            FrozenStudy(s.name, None, s.user_attrs, s.system_attrs, number, directions=s.directions)
            for number, s in found
        ]

    def create_new_trial(self, study_id: int, template_trial: Any = None) -> int:
        number: int = self._write("creates a trial", super().create_new_trial, study_id, template_trial)
        return number

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        what = f"keeps {key} of trial {trial_id}"
        self._write(what, super().set_trial_user_attr, trial_id, key, _plain(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        what = f"keeps {key} of trial {trial_id}"
        self._write(what, super().set_trial_system_attr, trial_id, key, _plain(value))

    def set_trial_param(self, trial_id: int, *args: Any) -> None:
        self._write(f"keeps {args[0]} of trial {trial_id}", super().set_trial_param, trial_id, *args)

    def set_trial_intermediate_value(self, trial_id: int, step: int, value: float) -> None:
        what = f"keeps the value at step {step} of trial {trial_id}"
        self._write(what, super().set_trial_intermediate_value, trial_id, step, value)

    def set_trial_state_values(self, trial_id: int, state: Any, values: Any = None) -> bool:
        what = f"lets trial {trial_id} be {state.name}: {values}"
        done: bool = self._write(what, super().set_trial_state_values, trial_id, state, values)
        return done

    def _write(self, what: str, write: Callable[..., Any], *args: Any) -> Any:
        self.world.step(f"{what} in Optuna's storage")
        return write(*args)


def plain_copy(value: Any) -> Any:
    """As copy.deepcopy, and fast where it is plain data."""
    if isinstance(value, dict):
        return {key: plain_copy(each) for key, each in value.items()}
    return value if isinstance(value, str | float | int | None) else copy.deepcopy(value)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


class Tracking:
    """A tracking server, with the runs of all experiments."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs: dict[str, SimpleNamespace] = {}  # by id
        self.ids: dict[str, str] = {}  # of the runs of keys
        self.points: dict[str, dict[tuple[str, int, int], list[float]]] = {}  # by id
        self.artifacts: dict[str, dict[str, bytes]] = {}  # by id
        self.versions: list[tuple[str, str, dict[str, str]]] = []  # run, model, tags
        self._ids = itertools.count()

    def store(self, address: object, experiment: str, _root: object) -> Store:
        """In place of `sender.Store`."""
        return Store(self, address, experiment)


def _copied(run: SimpleNamespace) -> SimpleNamespace:
    """What the server tells of a run, as it is now."""
    data = SimpleNamespace(tags=dict(run.data.tags), params=dict(run.data.params))
    return SimpleNamespace(info=SimpleNamespace(**vars(run.info)), data=data)


class Store:
    """An experiment of the server; the interface is that of `sender.Store`."""

    def __init__(self, server: Tracking, address: object, experiment: str) -> None:
        self.address = address
        self._server = server
        self._experiment = experiment

    def _call(self, what: str, do: Callable[[], Any]) -> Any:
        self._server.world.step(f"{what} on the tracking server", "the tracking server")
        done = do()
        self._server.world.answer(f"{what} on the tracking server")
        return done

    def forget(self) -> None:
        pass

    def find(self, key: str) -> Any | None:
        def find() -> Any | None:
            identifier = self._server.ids.get(key)
            return None if identifier is None else _copied(self._server.runs[identifier])

        return self._call(f"finds {key}", find)

    def create(self, key: str, name: str, started: int) -> Any:
        def create() -> None:
            identifier = f"run{next(self._server._ids)}"
            info = SimpleNamespace(
                run_id=identifier, run_name=name, start_time=started, end_time=None, status="RUNNING"
            )
            data = SimpleNamespace(tags={KEY_TAG: key}, params={})
            self._server.ids.setdefault(key, identifier)
            self._server.runs[identifier] = SimpleNamespace(info=info, data=data)
            self._server.points[identifier], self._server.artifacts[identifier] = {}, {}

        self._call(f"creates {key}", create)
        return self.find(key)

    def log(self, run_id: str, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        def log() -> None:
            data = self._server.runs[run_id].data
            for kind, name, value, *at in rows:
                if kind == "metrics":
                    values = self._server.points[run_id].setdefault((name, *at), [])
                    if value not in values:
                        values.append(value)
                elif kind == "params":
                    assert data.params.setdefault(name, value) == value, "a param never changes"
                else:
                    data.tags[name] = value

        self._call(f"logs {len(rows)} rows of {run_id}", log)
        return []

    def sizes(self, run_id: str, folders: Iterable[str]) -> dict[str, int]:
        del folders
        files = self._server.artifacts[run_id]
        return self._call(f"lists {run_id}", lambda: {path: len(c) for path, c in files.items()})

    def upload(self, run_id: str, folder: str) -> None:
        files = [f"{place}/{name}" for place, _, names in os.walk(folder) for name in names]
        for file in files:  # each a request of its own
            path, content = file[len(folder) + 1 :], Path(file).read_bytes()
            target = self._server.artifacts[run_id]
            self._call(f"takes {path} of {run_id}", lambda p=path, c=content, t=target: t.update({p: c}))

    def end(self, run_id: str, status: str, ended: int | None) -> None:
        def end() -> None:
            info = self._server.runs[run_id].info
            info.status = status
            info.end_time = ended if ended is not None else info.end_time

        self._call(f"ends {run_id}: {status}", end)

    def register(self, run_id: str, model: str, tags: Mapping[str, str]) -> None:
        def register() -> None:
            version = (run_id, model, dict(tags))
            if version not in self._server.versions:
                self._server.versions.append(version)

        self._call(f"registers {run_id} as {model}", register)
