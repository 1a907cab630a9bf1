"""What the storage knows of studies, for reading: the trial manager writes it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from gpm_tune.config import nearest
from gpm_tune.errors import ScarcityError, UnknownError, UserError, first_line
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.database import read_storage
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.training import Constraint, Experiment, Objective
from gpm_tune.training.checkpoint import Best
from gpm_tune.training.objectives import Measured

SCORES = "scores:"
"""Begins the names of attributes that hold a step's values of several objectives."""

_log = logging.getLogger("gpm_tune")


class UnfinishedError(UserError):
    """A study whose creation, or copying, was cut short: it has a name, and nothing that can be read."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the storage has it."""

    number: int
    state: str  # "complete", "pruned", "fail", "infeasible", "running", "interrupted"
    values: dict[str, Any]
    scores: list[float] | None  # of the objectives, at the evaluation where the first was best
    measured: Measured | None  # at that evaluation; None where there is none, or it is version 0.1's
    best_step: int | None
    feasible: bool  # keeps all constraints there; others are no results
    step: int
    seconds: float
    reason: str | None
    forked_from: str | None  # "trial 3, step 400", in population-based training
    confirms: int | None  # in a confirmation: the trial of the search that is trained again
    gpus: Sequence[str] = ()  # the kinds on which it was trained
    run: str | None = None  # the name of its training run's folder
    inherited: Best | None = None  # a fork's best evaluation when it began
    is_drawn: bool = True  # its values are complete; who drew them may have been ended in between
    told: Sequence[int] = ()  # the steps of its evaluations; its run may have others' besides
    note: str | None = None  # where it went on, if its latest checkpoint was damaged
    started: int = 0  # ms since the epoch, as `ended`
    ended: int | None = None

    @property
    def value(self) -> float | None:
        """Of the first objective."""
        return self.scores[0] if self.scores else None

    @property
    def fork_point(self) -> tuple[int, int] | None:
        """The trial that a fork comes from, and the step at which it left; None for one that is no fork."""
        if self.forked_from is None:
            return None
        donor, step = re.findall(r"\d+", self.forked_from)
        return int(donor), int(step)


@dataclass(frozen=True)
class StudyRecord:
    """A study as the storage has it."""

    name: str
    id: str
    objectives: list[Objective]
    features: str | None  # the network whose activations FID compares
    experiment: dict[str, Any]
    search: list[str]
    hours: float
    gpu_hours: float
    trials: list[TrialRecord]
    constraints: Sequence[Constraint] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # versions and machine of who ran it last
    data_fingerprint: str | None = None  # of the samples that were read; None where nothing recorded it
    dollars: float | None = None  # that the nodes cost meanwhile; None where no prices were known

    @property
    def objective(self) -> Objective:
        """The first."""
        return self.objectives[0]

    @property
    def measure(self) -> dict[str, Any]:
        """What another study must share for its values to be comparable with this one's."""
        return measure_of(self.objectives, self.experiment, self.features, self.data_fingerprint)

    def experiment_of(self, trial: TrialRecord) -> Experiment:
        """What a trial trains. Raises ValidationError where its values make no experiment of this version."""
        return Experiment.model_validate(space.put(self.experiment, trial.values))

    def ranked(self) -> list[TrialRecord]:
        """The feasible trials that have scores: best first; with several objectives by Pareto rank."""
        having = [trial for trial in self.trials if trial.scores and trial.feasible]
        return sorted(having, key=lambda trial: (self._dominating(trial, having), self._costs(trial)))

    def front(self) -> list[TrialRecord]:
        """The trials than which none is better in every objective, sorted by the first."""
        ranked = self.ranked()
        if len(self.objectives) == 1:
            return ranked[:1]
        return [trial for trial in ranked if not self._dominating(trial, ranked)]

    def _costs(self, trial: TrialRecord) -> list[float]:
        return as_costs(self.objectives, trial.scores or ())

    def _dominating(self, trial: TrialRecord, others: list[TrialRecord]) -> int:
        """How many trials are at least as good in every objective, and better in one."""
        if len(self.objectives) == 1:
            return 0
        own = self._costs(trial)
        pairs = [list(zip(self._costs(other), own, strict=True)) for other in others]
        return sum(all(a <= b for a, b in pair) and any(a < b for a, b in pair) for pair in pairs)


def as_costs(objectives: Iterable[Objective], scores: Sequence[float]) -> list[float]:
    """The scores of a trial, each turned so that less is better."""
    signs = [1 if objective.mode == "min" else -1 for objective in objectives]
    return [sign * score for sign, score in zip(signs, scores, strict=True)]


def measured_of(best: Mapping[str, Any]) -> Best:
    """The evaluation that the storage has as plain data."""
    return Best(step=best["step"], curve=best["curve"], scalars=best["scalars"])


def is_feasible(constraints: Iterable[Constraint], measured: Measured) -> bool:
    """Whether an evaluation keeps all constraints."""
    return all(constraint.violation(constraint.value_of(measured)) <= 0 for constraint in constraints)


def measure_of(
    objectives: list[Objective], experiment: dict[str, Any], features: str | None, data: str | None
) -> dict[str, Any]:
    """What two studies must share for their values to be comparable. data: their fingerprint."""
    return {
        "objectives": ", ".join(f"{objective.mode} {objective.metric}" for objective in objectives),
        "data": experiment["data"],
        "the data's fingerprint": data,
        "features": features,
        "evaluation.samples": experiment["evaluation"]["samples"],
    }


def read_study(storage: str, name: str, patience: Patience | None = None) -> StudyRecord:
    """Read a study.

    patience: for a busy database; None to wait for minutes. Raises UnknownError where there is none of this
    name, UnfinishedError where its creation was cut short, UserError where it cannot be read.
    """
    return _read(_holding(storage, name, patience), name)


def count_trials(storage: str, name: str) -> int:
    """How many trials a study has started, also one that cannot be read.

    Raises UnknownError where there is no study of this name.
    """
    opened = _holding(storage, name)
    trials = optuna.load_study(study_name=name, storage=opened).get_trials(deepcopy=False)
    return sum(map(is_own, trials))


def read_studies(storage: str) -> list[StudyRecord]:
    """Read all studies; a warning says which cannot be read, and why.

    Raises ScarcityError where the database stays busy.
    """
    opened, found = read_storage(storage), []
    for name in _names(opened):
        assert opened is not None, "it has this name"
        try:
            found.append(_read(opened, name))
        except ScarcityError:  # of the whole database, not of this study
            raise
        except UserError as error:
            _log.warning("%s", error)
    return found


def _holding(storage: str, name: str, patience: Patience | None = None) -> RDBStorage:
    """A storage that has a study of this name. Raises UnknownError where it has none."""
    opened = read_storage(storage, patience)
    if opened is None or name not in optuna.get_all_study_names(opened):
        names = _names(opened)
        hint = nearest(name, names) if names else "there are none yet"
        raise UnknownError(f"no study is named '{name}'; {hint}")
    return opened


def _read(opened: RDBStorage, name: str) -> StudyRecord:
    study = optuna.load_study(study_name=name, storage=opened)
    attributes = study.user_attrs
    if "id" not in attributes:
        raise UnfinishedError(
            f"study '{name}' is not whole: what created it was ended before it was done\n"
            f"help: run it again, or delete it: gpm-tune delete {name}"
        )
    try:
        return _record_of(study, attributes)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"study '{name}' cannot be read: {type(error).__name__}: {first_line(error)}\n"
            "help: it was written by another version, or damaged: use that version, or delete it: "
            f"gpm-tune delete {name}"
        ) from error


def _record_of(study: optuna.Study, attributes: Mapping[str, Any]) -> StudyRecord:
    identity = json.loads(attributes["identity"])
    constraints = [Constraint.model_validate(bound) for bound in identity["constraints"]]
    spent = attributes.get("spent", {})
    return StudyRecord(
        study.study_name,
        attributes["id"],
        [Objective.model_validate(goal) for goal in identity["objectives"]],
        attributes["features"],
        identity["experiment"],
        list(identity["search"]),
        spent.get("hours", 0.0),
        spent.get("gpu_hours", 0.0),
        [_record(trial, constraints) for trial in study.get_trials(deepcopy=False) if is_own(trial)],
        constraints,
        attributes.get("environment", {}),
        identity.get("fingerprints", {}).get("data"),
        spent.get("dollars"),
    )


def run_user(identifier: str) -> str:
    """What training runs that a study uses call it, by its id."""
    return f"study-{identifier}"


class StudyReader:
    """Reads a study, and its stage of new seeds, again and again; what has ended is read once."""

    def __init__(self, storage: str, name: str) -> None:
        self._storage = storage
        self._opened: RDBStorage | None = None  # once: Optuna takes long to open it
        self._stages: dict[str, optuna.Study | None] = {name: None, name + CONFIRMATION: None}

    def read(self) -> list[StudyRecord]:
        """Both as they are now, as far as they are there. Raises UserError where one cannot be read."""
        self._opened = self._opened or read_storage(self._storage)
        if self._opened is None:
            return []
        for name, study in self._stages.items():
            if study is None:
                with suppress(KeyError):  # there is none yet
                    self._stages[name] = optuna.load_study(study_name=name, storage=self._opened)
        found = [(study, study.user_attrs) for study in self._stages.values() if study]
        return [_record_of(study, attributes) for study, attributes in found if "id" in attributes]


def best_trial(record: StudyRecord) -> TrialRecord:
    """The trial with the best value. Raises UserError where no trial has one."""
    ranked = record.ranked()
    if not ranked:
        raise UserError(f"study '{record.name}' has no trial with a result yet")
    return ranked[0]


def study_names(storage: str) -> list[str]:
    """The names of the studies in a storage, which is not created where there is none."""
    return _names(read_storage(storage))


def read_confirmation(storage: str, name: str) -> StudyRecord | None:
    """What is known of a study's stage of new seeds, or None where it has none yet."""
    opened, stage = read_storage(storage), name + CONFIRMATION
    if opened is None or stage not in optuna.get_all_study_names(opened):
        return None
    try:
        return _read(opened, stage)
    except UnfinishedError:
        return None


def _names(opened: RDBStorage | None) -> list[str]:
    names = [] if opened is None else optuna.get_all_study_names(opened)
    return sorted(name for name in names if not name.endswith(CONFIRMATION))


def is_own(trial: FrozenTrial) -> bool:
    """Whether a trial of the storage is one that this study has started."""
    return trial.state != TrialState.WAITING and "origin" not in trial.user_attrs


def _record(trial: FrozenTrial, constraints: list[Constraint]) -> TrialRecord:
    attributes = trial.user_attrs
    progress = attributes.get("progress", {})
    best = progress.get("best") or {}
    measured = measured_of(best) if "curve" in best else None
    forked = attributes.get("forked_from") or {}
    left = forked.get("best")
    state, is_over = _state(trial), trial.state.is_finished()
    return TrialRecord(
        number=trial.number,
        state=state,
        values=attributes.get("values", trial.params),
        scores=best.get("scores"),
        measured=measured,
        best_step=best.get("step"),
        feasible=state != "infeasible" and (measured is None or is_feasible(constraints, measured)),
        step=progress.get("step", 0),
        seconds=progress.get("seconds", 0.0),
        reason=attributes.get("reason"),
        forked_from=f"trial {forked['trial']}, step {forked['step']}" if forked else None,
        confirms=attributes.get("confirms"),
        gpus=attributes.get("gpus", ()),
        run=attributes.get("run"),
        inherited=measured_of(left) if left else None,
        is_drawn="values" in attributes,
        told=sorted(step for step in _told(trial) if step <= progress.get("step", 0)),
        note=attributes.get("note"),
        started=attributes.get("started") or _milliseconds(trial.datetime_start),
        ended=attributes.get("ended") or _milliseconds(trial.datetime_complete) if is_over else None,
    )


def _told(trial: FrozenTrial) -> list[int]:
    """The steps of which the storage has values, of one objective or several."""
    several = [int(name.removeprefix(SCORES)) for name in trial.user_attrs if name.startswith(SCORES)]
    return [*trial.intermediate_values, *several]


def _milliseconds(time: datetime | None) -> int:
    """Of a time of Optuna's, which is local where it was written: in studies of earlier versions."""
    return 0 if time is None else int(time.timestamp() * 1000)


def _state(trial: FrozenTrial) -> str:
    state = trial.state.name.lower()
    if state == "running" and trial.user_attrs.get("interrupted"):
        return "interrupted"
    violated = any(violation > 0 for violation in trial.constraints.values())
    return "infeasible" if violated and state in ("complete", "pruned") else state
