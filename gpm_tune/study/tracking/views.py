"""What MLflow is to show of runs, derived from the records: Optuna's storage, and training runs' folders.

Pure functions: the same records give the same view, and more records give a view with more points.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from gpm_tune.documents import as_yaml
from gpm_tune.study.accounts.records import StudyRecord, TrialRecord, as_costs, run_user
from gpm_tune.study.tracking.provenance import run_tags
from gpm_tune.training import Constraint, Experiment, Objective
from gpm_tune.training.objectives import Measured
from gpm_tune.training.run import EvaluationRecord

BEST = "best/"
"""Begins the names of metrics whose last value is that of the best evaluation, and not of the last one."""
BY_NFE = "_by_nfe"
"""Ends the names of curves, whose steps are NFE."""
CHANGING = frozenset({"study.yaml"})
"""The only files whose content may change."""

NFE = Objective(metric="nfe")

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
STATUSES: Mapping[str, Status] = {
    "running": "RUNNING",
    "interrupted": "KILLED",
    "fail": "FAILED",
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "infeasible": "FINISHED",
}
"""The status of the run of a trial, or a single experiment, in each state, in MLflow's words."""

Files = Mapping[str, Callable[[], bytes]]
"""Paths of artifacts, and what reads their content; only that of CHANGING may become another."""


@dataclass(frozen=True)
class Point:
    """A value of a metric. Name, time and step tell a run's points apart."""

    name: str
    value: float
    time: int  # ms since the epoch
    step: int


@dataclass(frozen=True)
class Version:
    """A version of a registered model, made of the run's artifact folder `checkpoint`."""

    model: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class View:
    """All that MLflow is to show of one run, as the records have it now."""

    key: str  # unique for life
    name: str
    parent: str | None  # its key
    started: int  # ms since the epoch
    ended: int | None  # None while it is running
    status: Status
    params: Mapping[str, Any]  # plain nested data
    tags: Mapping[str, str]
    points: Sequence[Point]
    files: Files
    versions: Sequence[Version] = ()

    def marks(self) -> dict[str, str]:
        """Each file's path with what tells whether it has changed."""
        return {
            p: hashlib.sha256(read()).hexdigest() if p in CHANGING else "" for p, read in self.files.items()
        }

    def digest(self, marks: Mapping[str, str], parent: str | None) -> str:
        """Differs where MLflow lacks something. parent: the id of the parent's run there."""
        versions = [vars(version) for version in self.versions]
        points = [list(vars(point).values()) for point in self.points]
        content = {**vars(self), "points": points, "versions": versions, "files": marks, "parent": parent}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def trial_key(study: StudyRecord, number: int) -> str:
    """Identifies a trial's run."""
    return f"{study.id}/{number:04d}"


def trial_view(
    study: StudyRecord,
    trial: TrialRecord,
    experiment: Experiment,
    evaluations: Sequence[EvaluationRecord],
    files: Files,
    *,
    is_registered: bool = False,
) -> View:
    """A trial's run. evaluations: those that are its own, by step; see `evaluations_of`.

    is_registered: whether its files have a folder `checkpoint` that is a version of the study's model.
    """
    tags = {
        "gpm.study": study.name,
        "gpm.trial": str(trial.number),
        "gpm.forked_from": trial.forked_from,
        "gpm.note": trial.note,
        "gpm.reason": trial.reason,
        "gpm.training_run": trial.run,
        "gpm.gpu": trial.gpus[-1] if trial.gpus else None,
    }
    version = {
        "trial": str(trial.number),
        "step": str(trial.best_step),
        "metric": study.objective.metric,
        "value": str(trial.value),
    }
    return _view_of_training(
        trial_key(study, trial.number),
        f"trial {trial.number}",
        study.id,
        trial.state,
        (trial.started, trial.ended),
        experiment,
        run_tags(experiment, study.data_fingerprint or "") | _known(tags),
        study.objectives,
        evaluations,
        files,
        (Version(study.name, version),) if is_registered else (),
        constraints=study.constraints,
        inherited=_inherited(study, trial, experiment),
    )


def _inherited(study: StudyRecord, trial: TrialRecord, experiment: Experiment) -> EvaluationRecord | None:
    """The best evaluation of the training that a fork left, as the fork's first: its time is when it left."""
    if trial.inherited is None:
        return None
    return EvaluationRecord(
        step=trial.inherited.step,
        judge=experiment.judge(study.objective),
        time=trial.started,
        machine="",
        user=run_user(study.id),
        version="",
        curve=trial.inherited.curve,
        scalars=trial.inherited.scalars,
    )


def single_view(
    experiment: Experiment,
    name: str,
    key: str,
    evaluations: Sequence[EvaluationRecord],
    state: str,
    files: Files,
    *,
    started: int,
    data_fingerprint: str,
    run: str | None = None,
    note: str | None = None,
    reason: str | None = None,
) -> View:
    """The run of an experiment alone.

    state: of STATUSES. started: ms since the epoch. run, note, reason: as in TrialRecord.
    """
    tags = {"gpm.training_run": run, "gpm.note": note, "gpm.reason": reason}
    return _view_of_training(
        key,
        f"{name}-{key}",
        None,
        state,
        (started, None),
        experiment,
        run_tags(experiment, data_fingerprint) | _known(tags),
        [experiment.default_objective],
        evaluations,
        files,
    )


def study_view(
    study: StudyRecord,
    experiment: Experiment,
    *,
    is_running: bool,
    environment: Mapping[str, str],
    files: Files,
) -> View | None:
    """A study's own run; None while it has no trial.

    experiment: its base. is_running: whether a process runs it now. environment: tags of where it was run,
    which need not be here. files: study.yaml and requirements.txt.
    """
    if not study.trials:
        return None
    leader = min(filter(_is_result, study.trials), key=lambda trial: _rank(study, trial), default=None)
    tags = run_tags(experiment, study.data_fingerprint or "") | dict(environment)
    tags |= {
        "gpm.study": study.name,
        "gpm.best_trial": str(leader.number if leader else "none"),
        "gpm.best_step": str(leader.best_step if leader else "none"),
    }
    is_unfinished = any(trial.state in ("running", "interrupted") for trial in study.trials)
    started = min(trial.started for trial in study.trials)
    return View(
        study.id,
        study.name,
        None,
        started,
        None if is_running else max((trial.ended or 0 for trial in study.trials), default=0) or started,
        "RUNNING" if is_running else "KILLED" if is_unfinished else "FINISHED",
        {},
        tags,
        list(_leads(study)),
        files,
    )


def _leads(study: StudyRecord) -> Iterator[Point]:
    """The best feasible trial, after each one that ended with scores; the step is how many have."""
    having = [trial for trial in study.trials if trial.ended is not None and trial.scores]
    leader = None
    for count, trial in enumerate(sorted(having, key=lambda trial: (trial.ended, trial.number)), start=1):
        if trial.feasible and (leader is None or _rank(study, trial) < _rank(study, leader)):
            leader = trial
        measured = leader.measured if leader else None
        yield from _best_points(study.objectives, measured, cast("int", trial.ended), count)


def _is_result(trial: TrialRecord) -> bool:
    return trial.feasible and bool(trial.scores)


def _rank(study: StudyRecord, trial: TrialRecord) -> tuple[list[float], int]:
    """Less for a better trial; the least one is the first of `StudyRecord.ranked`."""
    return as_costs(study.objectives, trial.scores or ()), trial.number


def _view_of_training(
    key: str,
    name: str,
    parent: str | None,
    state: str,
    times: tuple[int, int | None],
    experiment: Experiment,
    tags: Mapping[str, str],
    objectives: Sequence[Objective],
    evaluations: Sequence[EvaluationRecord],
    files: Files,
    versions: Sequence[Version] = (),
    *,
    constraints: Sequence[Constraint] = (),
    inherited: EvaluationRecord | None = None,
) -> View:
    version = evaluations[-1].version if evaluations else None
    plain, (started, ended) = experiment.model_dump(mode="json"), times
    points, best = _course(objectives, constraints, evaluations, inherited)
    if best and STATUSES[state] == "FINISHED":
        points += _curve(objectives[0], experiment, best)
    if ended is None and state != "running":
        ended = max((evaluation.time for evaluation in evaluations), default=started)
    return View(
        key,
        name,
        parent,
        started,
        None if state == "running" else ended,
        STATUSES[state],
        plain,
        {**tags, **_known({"gpm.version": version, "gpm.state": state})},
        points,
        {"experiment.yaml": lambda: as_yaml(plain).encode(), **files},
        versions,
    )


def _course(
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    evaluations: Iterable[EvaluationRecord],
    inherited: EvaluationRecord | None,
) -> tuple[list[Point], EvaluationRecord | None]:
    """The points of evaluations, and the best one: that where the first objective was best."""
    first, points, best = objectives[0], list[Point](), inherited
    if best is not None:
        points += _best_points(objectives, best, best.time, best.step)
    for found in evaluations:
        derived = {named.metric: named.value_of(found) for named in (*objectives, *constraints)}
        points += (Point(name, y, found.time, found.step) for name, y in (found.as_text() | derived).items())
        if best is None or first.better(first.value_of(found), first.value_of(best)):
            best = found
            points += _best_points(objectives, found, found.time, found.step)
    return points, best


def _best_points(
    objectives: Sequence[Objective], measured: Measured | None, time: int, step: int
) -> Iterator[Point]:
    """What runs are sorted by: the objectives and the NFE of the best; NaN where there is none."""
    for named in {goal.metric: goal for goal in (*objectives, NFE)}.values():
        value = math.nan if measured is None else named.value_of(measured)
        yield Point(f"{BEST}{named.metric}", value, time, step)


def _curve(objective: Objective, experiment: Experiment, best: EvaluationRecord) -> list[Point]:
    """The objective's metric, or else the experiment's, against NFE at the best evaluation."""
    for metric in (objective.quantity.metric, experiment.default_objective.metric):
        if points := best.along_nfe(metric):
            return [Point(f"{metric}{BY_NFE}", value, best.time, nfe) for nfe, value in points.items()]
    return []


def _known(tags: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in tags.items() if text is not None}
