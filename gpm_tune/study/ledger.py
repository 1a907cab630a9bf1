"""The ledger: accounts for every trial of a study, in Optuna's storage, the source of truth.

Each trial is asked for once and told once. One that was running when the program went away is handed
out again before a new one is asked for; one that was stopped early is PRUNED and keeps its
intermediate values; one that failed is FAIL with its reason.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from gpm_tune.config import nearest
from gpm_tune.errors import UserError
from gpm_tune.study import space
from gpm_tune.study.specification import Study
from gpm_tune.training import Experiment, Objective

logging.getLogger("alembic").setLevel(logging.WARNING)
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Assignment:
    """A trial to be run: its sampled values, the whole experiment, and where it left off if it did."""

    number: int
    values: dict[str, Any]
    experiment: Experiment
    checkpoint: str | None
    steps_done: int


class Ledger:
    """Hands out the trials of a study and records what becomes of them."""

    def __init__(self, study: Study, storage: str | None) -> None:
        """Open the study in the storage, or create it; None for one that is forgotten.

        Raises UserError where a study of this name has another base, search space or objective.
        """
        self.study = study
        self._optuna = optuna.create_study(
            storage=_open(storage),
            study_name=study.name,
            load_if_exists=True,
            direction="minimize" if study.objective.mode == "min" else "maximize",
        )
        if not self._optuna.user_attrs:
            self._create()
        self._refuse_another_study()
        trials = self._optuna.get_trials(deepcopy=False)
        asked = [t for t in trials if t.state != TrialState.WAITING]
        # The seed moves on with the trials, so that a restart does not repeat their draws.
        self._optuna.sampler = study.sampler.build(study.sampler.seed + len(asked))
        self._optuna.pruner = study.scheduler.build()
        self._unfinished = deque(t._trial_id for t in trials if t.state == TrialState.RUNNING)
        self._asked = len(asked)
        self._live: dict[int, optuna.Trial] = {}

    def _create(self) -> None:
        if "base" in self.study.start_from:
            start = space.start_point(self.study.base, self.study.search)
            self._optuna.enqueue_trial(start)
        self._optuna.set_user_attr("identity", json.dumps(self.study.identity))
        self._optuna.set_user_attr("objective", self.study.objective.model_dump())
        self._optuna.set_user_attr("features", self.study.experiment.features)
        self._optuna.set_user_attr("id", uuid.uuid4().hex)

    def _refuse_another_study(self) -> None:
        stored = json.loads(self._optuna.user_attrs["identity"])
        differing = _differences(stored, self.study.identity)
        if differing:
            raise UserError(
                f"study '{self.study.name}' exists already with other values of "
                f"{', '.join(differing)}; its trials would not be comparable. Choose another "
                "name (--name), or give the file its former values to continue"
            )

    @property
    def id(self) -> str:
        """Identifies the study beyond its name, which may be used again after deletion."""
        identifier: str = self._optuna.user_attrs["id"]
        return identifier

    @property
    def remaining(self) -> int:
        """Trials that have to be run, or finished, to fill the budget."""
        return max(0, self.study.budget.trials - self._asked) + len(self._unfinished)

    def next(self) -> Assignment | None:
        """The next trial to run, unfinished ones first; None once the budget is used up."""
        while self._unfinished:
            assignment = self._assign(optuna.Trial(self._optuna, self._unfinished.popleft()))
            if assignment:
                return assignment
        while self._asked < self.study.budget.trials:
            self._asked += 1
            assignment = self._assign(self._optuna.ask())
            if assignment:
                return assignment
        return None

    def _assign(self, trial: optuna.Trial) -> Assignment | None:
        """The assignment of a trial, or None where its values do not make an experiment: it fails."""
        values = space.sample(trial, self.study.base, self.study.search)
        self._live[trial.number] = trial
        try:
            experiment = Experiment.model_validate(space.put(self.study.base, values))
        except ValidationError as error:
            self.fail(trial.number, error.errors()[0]["msg"].removeprefix("Value error, "))
            return None
        trial.set_user_attr("values", values)
        trial.set_user_attr("interrupted", False)
        attributes = trial.user_attrs
        return Assignment(
            trial.number,
            values,
            experiment,
            attributes.get("checkpoint"),
            attributes.get("step", 0),
        )

    def report(self, number: int, step: int, metrics: Mapping[str, float]) -> bool:
        """Record an evaluation. Returns whether the trial should be stopped here.

        An evaluation that is reported again, after a lost worker, changes nothing.
        """
        trial = self._live[number]
        if step <= trial.user_attrs.get("step", 0):
            return False
        objective = self.study.objective
        value = metrics[objective.metric]
        best = trial.user_attrs.get("best", {}).get("metrics", {}).get(objective.metric)
        trial.report(value, step)
        if best is None or objective.better(value, best):
            trial.set_user_attr("best", {"step": step, "metrics": dict(metrics)})
        trial.set_user_attr("seconds", metrics["seconds"])
        trial.set_user_attr("step", step)  # last: what it vouches for is in the storage by now
        return trial.should_prune()

    def keep_checkpoint(self, number: int, path: str) -> None:
        """Remember where the trial's latest checkpoint lies."""
        self._live[number].set_user_attr("checkpoint", path)

    def complete(self, number: int) -> None:
        """The trial ran all its steps. Its value is the best that its objective reached."""
        best = self._live[number].user_attrs["best"]["metrics"][self.study.objective.metric]
        self._tell(number, TrialState.COMPLETE, best)

    def prune(self, number: int) -> None:
        """The trial was stopped early; Optuna keeps its intermediate values."""
        self._tell(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """The trial ended without a usable result."""
        self._live[number].set_user_attr("reason", reason)
        self._tell(number, TrialState.FAIL)

    def suspend(self, number: int) -> None:
        """The trial is left as it is; the next run of the study continues it."""
        self._live.pop(number).set_user_attr("interrupted", True)

    def requeue(self, number: int) -> None:
        """The trial lost its process; it is handed out again, from its latest checkpoint."""
        self._unfinished.appendleft(self._live.pop(number)._trial_id)

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        self._optuna.tell(number, value, state=state, skip_if_finished=True)
        del self._live[number]


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the storage has it."""

    number: int
    state: str  # "complete", "pruned", "fail", "running", "interrupted"
    values: dict[str, Any]
    value: float | None  # the best that the objective reached
    metrics: dict[str, float]  # of the best evaluation
    best_step: int | None
    step: int
    seconds: float
    reason: str | None
    checkpoint: str | None


@dataclass(frozen=True)
class StudyRecord:
    """A study as the storage has it."""

    name: str
    id: str
    objective: Objective
    features: str | None  # the network whose activations FID compares
    experiment: dict[str, Any]
    search: list[str]
    trials: list[TrialRecord]

    def ranked(self) -> list[TrialRecord]:
        """The trials that have a value, best first."""
        having = [trial for trial in self.trials if trial.value is not None]
        sign = 1 if self.objective.mode == "min" else -1
        return sorted(having, key=lambda trial: sign * (trial.value or 0.0))


def read_study(storage: str, name: str) -> StudyRecord:
    """What is known of a study. Raises UserError where there is none of this name."""
    names = study_names(storage)
    if name not in names:
        hint = nearest(name, names) if names else "there are none yet"
        raise UserError(f"no study is named '{name}'; {hint}")
    study = optuna.load_study(study_name=name, storage=storage)
    identity = json.loads(study.user_attrs["identity"])
    objective = Objective.model_validate(study.user_attrs["objective"])
    trials = study.get_trials(deepcopy=False)
    return StudyRecord(
        name,
        study.user_attrs["id"],
        objective,
        study.user_attrs["features"],
        identity["experiment"],
        list(identity["search"]),
        [_record(t, objective) for t in trials if t.state != TrialState.WAITING],
    )


def study_names(storage: str) -> list[str]:
    """The names of the studies in a storage, which is not created where there is none."""
    if storage.startswith("sqlite:///") and not Path(storage.removeprefix("sqlite:///")).exists():
        return []
    return sorted(optuna.get_all_study_names(storage))


def _record(trial: FrozenTrial, objective: Objective) -> TrialRecord:
    attributes = trial.user_attrs
    best = attributes.get("best", {})
    state = trial.state.name.lower()
    return TrialRecord(
        number=trial.number,
        state="interrupted" if state == "running" and attributes.get("interrupted") else state,
        values=attributes.get("values", trial.params),
        value=best.get("metrics", {}).get(objective.metric),
        metrics=best.get("metrics", {}),
        best_step=best.get("step"),
        step=attributes.get("step", 0),
        seconds=attributes.get("seconds", 0.0),
        reason=attributes.get("reason"),
        checkpoint=attributes.get("checkpoint"),
    )


def _open(storage: str | None) -> RDBStorage | None:
    """The storage; in SQLite with a write-ahead log, as a study commits twenty times a trial.

    A commit then waits for no disk. Where power fails the last ones are lost, and the evaluations in
    them are measured again; where a process is killed nothing is.
    """
    if storage is None:
        return None
    opened = RDBStorage(storage)
    if storage.startswith("sqlite:"):
        sqlalchemy.event.listen(opened.engine, "connect", _write_ahead)
        opened.engine.dispose()  # connections from now on are set
    return opened


def _write_ahead(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths at which two trees of plain data differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        found = [_differences(one.get(k), other.get(k), f"{path}.{k}" if path else k) for k in keys]
        return [path for paths in found for path in paths]
    return [] if one == other else [path]
