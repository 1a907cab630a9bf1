"""From what a person calls a run to its checkpoint: a study and its trial, an MLflow run id, or a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gpm_tune import locations
from gpm_tune.config import nearest
from gpm_tune.errors import UnknownError, UserError
from gpm_tune.paths import expand
from gpm_tune.study.accounts.records import (
    StudyRecord,
    TrialRecord,
    best_trial,
    read_study,
    study_names,
)
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import CONFIRMATION, Study
from gpm_tune.study.storage import trial_checkpoints
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment, checkpoint
from gpm_tune.training.saved import first_sound, read_experiment
from gpm_tune.uris import without_secrets

RUN_ID = re.compile(r"^[0-9a-f]{32}$")


def checkpoint_of(reference: str, home: Home) -> Path:
    """The checkpoint of one run, by what `checkpoints_of` takes."""
    return next(iter(checkpoints_of(reference, home).values()))


def checkpoints_of(reference: str, home: Home) -> dict[str, Path]:
    """What to call each run of a reference, and its checkpoint.

    reference: STUDY (its best trial), STUDY/TRIAL, STUDY/* (all of its trials that have a checkpoint),
    an MLflow run id, a checkpoint's folder, or the folder of a single experiment (its newest). A study's
    name may end with .confirm, for its stage of new seeds.

    One that is damaged is passed over for the one before it, with a warning. Raises UserError where there
    is none.
    """
    if found := _of_folder(expand(reference)):
        return {reference: first_sound(found)}
    if RUN_ID.match(reference):
        return {reference: _tracked(reference, home)}
    name, _, number = reference.partition("/")
    names = study_names(home.optuna_uri)
    if name.removesuffix(CONFIRMATION) not in names:
        hint = nearest(name, names) if names else "none has been run here yet"
        raise UnknownError(
            f"{reference}: neither a study of {home.root} ({hint}), nor a checkpoint's folder (one with a "
            "checkpoint.json), nor an MLflow run id (32 hexadecimal digits)"
        )
    return _of_study(read_study(home.optuna_uri, name), number, home)


def _of_folder(folder: Path) -> list[Path]:
    """The checkpoints, newest first, that a folder means: those of its run, or itself and older ones."""
    place = folder.absolute()
    if place.is_dir() and place.parent.name == "checkpoints" and place.name.startswith("step_"):
        return checkpoint.up_to(place)
    if place.is_dir() and trial_checkpoints.is_one(place):
        return [Path(found) for found in trial_checkpoints.newest_first(str(place))]
    return [folder] if (folder / "checkpoint.json").exists() else checkpoint.newest_first(folder)


def _of_study(record: StudyRecord, number: str, home: Home) -> dict[str, Path]:
    if number == "*":
        trials, which, where = record.trials, "every trial", ""
    else:
        trial = _trial(record, number) if number else best_trial(record)
        trials, which = [trial], f"trial {trial.number}"
        where = f" ({trial.checkpoint})" if trial.checkpoint else ""
    found = {trial.number: places for trial in trials if (places := _checkpoints(trial))}
    if not found:
        raise UserError(f"study '{record.name}': {which} is without a checkpoint on this machine{where}")
    return {
        f"{record.name}/{number}": first_sound(locations.local(place, home.cache) for place in places)
        for number, places in found.items()
    }


def _checkpoints(trial: TrialRecord) -> list[str]:
    """A trial's checkpoints that can be reached from here, newest first."""
    found = trial_checkpoints.newest_first(trial.checkpoint) if trial.checkpoint else []
    return [place for place in found if locations.exists(f"{place}/checkpoint.json")]


def _trial(record: StudyRecord, number: str) -> TrialRecord:
    for trial in record.trials:
        if str(trial.number) == number:
            return trial
    raise UnknownError(f"study '{record.name}' has no trial {number}; it has {len(record.trials)} trials")


def _tracked(run: str, home: Home) -> Path:
    """The checkpoint that MLflow's tag of a run names."""
    if not home.is_tracked:
        raise UserError(f"run {run}: nothing has been tracked in {home.tracking_uri} yet")
    client = home.mlflow()
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_run(run).data.tags
    except MlflowException as error:
        raise UserError(f"run {run}: {without_secrets(error.message)}, in {home.tracking_uri}") from None
    if "gpm.checkpoint" not in tags:
        raise UserError(f"run {run}: it has no checkpoint; a study's parent run has none, its trials do")
    folder = locations.local(tags["gpm.checkpoint"], home.cache)
    found = _of_folder(folder)
    if not found:
        raise UserError(f"run {run}: its checkpoint {folder} is not on this machine")
    return first_sound(found)


def find_teacher(experiment: Experiment, home: Home) -> Experiment:
    """The experiment with a teacher that was given by its MLflow run given by its checkpoint instead.

    Raises UserError where the run has no checkpoint, or one that does not fit.
    """
    given = experiment.given_teacher
    if given is None or given.run is None:
        return experiment
    folder = checkpoint_of(given.run, home)
    try:
        experiment.check_teacher(read_experiment(folder))
    except ValueError as error:
        raise UserError(str(error)) from None
    plain = experiment.model_dump(mode="json")
    plain["model"]["teacher"] = {"checkpoint": str(folder)}
    return Experiment.model_validate(plain)


def find_start_points(study: Study, home: Home) -> Study:
    """The study with start points that were given by MLflow runs given by their values instead.

    Raises UserError where a run has no checkpoint, or its values lie outside the search space.
    """
    starts: list[str | dict[str, Any]] = []
    for start in study.start_from:
        if isinstance(start, str) and start != "base":
            tree = read_experiment(checkpoint_of(start, home)).model_dump(mode="json")
            try:
                space.parameters(tree, study.base, study.search)
            except ValueError as error:
                raise UserError(f"start_from: run {start}: its {error}") from None
            starts.append(space.found(tree, study.search))
        else:
            starts.append(start)
    return study.model_copy(update={"start_from": starts})
