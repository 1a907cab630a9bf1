"""What was trained under a name, a study's trials or single experiments, and what was measured of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from pydantic import ValidationError

from gpm_tune import locations
from gpm_tune.config import nearest
from gpm_tune.errors import UnknownError
from gpm_tune.study.accounts.records import (
    StudyRecord,
    TrialRecord,
    read_confirmation,
    read_study,
    study_names,
)
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment
from gpm_tune.training.experiment import digest
from gpm_tune.training.run import EvaluationRecord, Runs, TrainingRun

SINGLE = re.compile(r"train-(?P<name>.+)-(?P<digest>[0-9a-f]{8})")  # what `single_user` gives


@dataclass(frozen=True)
class Trained:
    """A trial, or a single experiment, with what was measured of it."""

    study: str  # or what the single experiment is called
    stage: str  # "search", "confirm", or "single"
    trial: int | None
    state: str  # as of TrialRecord; of a single experiment "complete" or "unfinished"
    run: str | None  # its training run
    experiment: Experiment
    data_fingerprint: str | None
    evaluations: Sequence[EvaluationRecord]


def evaluations_of(
    study: StudyRecord, trial: TrialRecord, experiment: Experiment, run: TrainingRun
) -> list[EvaluationRecord]:
    """A trial's evaluations, of all that its training run has: by its judge, as far as it was told of.

    A fork's are those after the step where it left another trial. experiment: the trial's.
    """
    _, begun = trial.fork_point or (None, -1)
    found = run.evaluations(experiment.judge(study.objective), after=begun)
    return [record for record in found if record.step in trial.told]


def seconds_of_others(run: TrainingRun, user: str, until: float) -> float:
    """Of a run's first seconds of training, `until` so many, those that were trained for other users.

    What was trained between two evaluations is of whom the later one was measured for.
    """
    reached = found = 0.0
    known = [(record.scalars.get("seconds", 0.0), record.time, record.user) for record in run.evaluations()]
    for seconds, _, of in sorted(known):
        more = max(0.0, min(seconds, until) - reached)
        reached += more
        found += more if of != user else 0.0
    return found


def single_user(name: str, experiment: Experiment) -> str:
    """What a training run calls an experiment of `gpm-tune train` that needs it."""
    return f"train-{name}-{digest(experiment.model_dump(mode='json'), 8)}"


def read_trained(home: Home, name: str) -> list[Trained]:
    """The trials of a study, and of its stage of new seeds; else the single experiments of this name.

    Trials whose values make no experiment of this version are left out. Raises UnknownError where there is
    nothing of this name.
    """
    studies = study_names(home.optuna_uri)
    if name in studies:
        stages = read_study(home.optuna_uri, name), read_confirmation(home.optuna_uri, name)
        pairs = [(study, trial) for study in stages if study for trial in study.trials]
        return list(filter(None, (_trial(study, trial, home.runs) for study, trial in pairs)))
    users = [(run, user) for run in map(home.runs.named, home.runs.names()) for user in run.users()]
    singles = [(run, match) for run, user in users if (match := SINGLE.fullmatch(user))]
    of_name = [(run, match) for run, match in singles if match["name"] == name]
    if not of_name:
        known = sorted({*studies, *(match["name"] for _, match in singles)})
        hint = nearest(name, known) if known else "nothing was trained there yet"
        raise UnknownError(f"'{name}': no study or single experiment of this name in {home.root}; {hint}")
    return list(filter(None, (_single(run, match) for run, match in of_name)))


def _trial(study: StudyRecord, trial: TrialRecord, runs: Runs) -> Trained | None:
    try:
        experiment = study.experiment_of(trial)
    except ValidationError:
        return None
    return Trained(
        study.name.removesuffix(CONFIRMATION),
        "confirm" if study.name.endswith(CONFIRMATION) else "search",
        trial.number,
        trial.state,
        trial.run,
        experiment,
        study.data_fingerprint,
        evaluations_of(study, trial, experiment, runs.named(trial.run)) if trial.run else [],
    )


def _single(run: TrainingRun, match: re.Match[str]) -> Trained | None:
    """None for a teacher: its run is needed by the same user, and is of another experiment."""
    tree = yaml.safe_load(locations.read(f"{run.location}/users/{match[0]}"))
    if digest(tree, 8) != match["digest"]:
        return None
    experiment = Experiment.model_validate(tree)
    return Trained(
        match["name"],
        "single",
        None,
        "complete" if run.is_trained(experiment) else "unfinished",
        run.name,
        experiment,
        run.data_fingerprint(),
        run.evaluations(experiment.judge(), up_to=experiment.training.steps),
    )
