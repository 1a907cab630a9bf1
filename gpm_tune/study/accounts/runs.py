"""From what a person calls a run to its trained model: a study, its trial, an MLflow run, or a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gpm_tune import locations
from gpm_tune.config import nearest
from gpm_tune.errors import MIGRATE, UnknownError, UserError
from gpm_tune.paths import expand
from gpm_tune.study.accounts.records import (
    StudyRecord,
    TrialRecord,
    best_trial,
    read_study,
    study_names,
)
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import CONFIRMATION, StudyConfig
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment
from gpm_tune.training.run import Runs, TrainingRun, first_sound
from gpm_tune.training.saved import SavedModel
from gpm_tune.uris import without_secrets

RUN_ID = re.compile(r"^[0-9a-f]{32}$")


def model_of(reference: str, home: Home) -> SavedModel:
    """The trained model of one run, by what `models_of` takes."""
    return next(iter(models_of(reference, home).values()))


def models_of(reference: str, home: Home) -> dict[str, SavedModel]:
    """What to call each run of a reference, and its trained model, with its best weights.

    reference: STUDY (its best trial), STUDY/TRIAL, STUDY/* (all of its trials that have a checkpoint), a
    training run by the name of its folder, an MLflow run id, or a folder of a training run or checkpoint. A
    study's name may end with .confirm, for its stage of new seeds.

    A checkpoint that is damaged is passed over for the one before it, with a warning. Raises UserError where
    there is none.
    """
    if found := _of_folder(expand(reference)):
        return {reference: found}
    if RUN_ID.match(reference):
        return {reference: _tracked(reference, home)}
    if locations.exists(f"{home.runs.location}/{reference}/experiment.yaml"):
        return {reference: _of_run(home.runs.named(reference))}
    name, _, number = reference.partition("/")
    names = study_names(home.optuna_uri)
    if name.removesuffix(CONFIRMATION) not in names:
        hint = nearest(name, names) if names else "none has been run here yet"
        raise UnknownError(
            f"{reference}: neither a study of {home.root} ({hint}), nor a training run there, nor the folder "
            "of a run or a checkpoint (one with a checkpoint.json), nor an MLflow run id (32 hexadecimal "
            "digits)"
        )
    return _of_study(read_study(home.optuna_uri, name), number, home)


def _of_folder(folder: Path) -> SavedModel | None:
    """The model of a checkpoint's folder, or of a run's; None for another one."""
    folder = folder.absolute()
    if folder.parent.name == "checkpoints" and folder.is_dir():
        earlier = sorted((f for f in folder.parent.iterdir() if f.name <= folder.name), reverse=True)
        return first_sound(earlier, None, None)
    if (folder / "checkpoint.json").exists():
        return first_sound([folder], None, None)
    if (folder / "experiment.yaml").exists() and (folder / "checkpoints").is_dir():
        return _of_run(Runs(str(folder.parent), folder.parent).named(folder.name))
    return None


def _of_run(run: TrainingRun) -> SavedModel:
    return first_sound((run.here(place) for place in run.checkpoints()), None, None)


def _of_study(record: StudyRecord, number: str, home: Home) -> dict[str, SavedModel]:
    if number == "*":
        trials, which, where = record.trials, "every trial", ""
    else:
        trial = _trial(record, number) if number else best_trial(record)
        trials, which = [trial], f"trial {trial.number}"
        where = f" ({home.runs.location}/{trial.run})" if trial.run else ""
    found = {
        f"{record.name}/{trial.number}": home.runs.named(trial.run).saved(
            record.experiment_of(trial), trial.best_step
        )
        for trial in trials
        if trial.run and home.runs.named(trial.run).checkpoints()
    }
    if not found:
        missing = f"study '{record.name}': {which} is without a checkpoint on this machine{where}"
        is_old = not any(trial.run for trial in trials)
        raise UserError(f"{missing}\n{MIGRATE}" if is_old else missing)
    return found


def _trial(record: StudyRecord, number: str) -> TrialRecord:
    for trial in record.trials:
        if str(trial.number) == number:
            return trial
    raise UnknownError(f"study '{record.name}' has no trial {number}; it has {len(record.trials)} trials")


def _tracked(run: str, home: Home) -> SavedModel:
    """The model of the training run, or the trial, that MLflow's tags of a run name."""
    if not home.is_tracked:
        raise UserError(f"run {run}: nothing has been tracked in {home.tracking_uri} yet")
    client = home.mlflow()
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_run(run).data.tags
    except MlflowException as error:
        raise UserError(f"run {run}: {without_secrets(error.message)}, in {home.tracking_uri}") from None
    if "gpm.checkpoint" in tags and "gpm.training_run" not in tags:
        raise UserError(f"run {run}: was tracked by version 0.1\n{MIGRATE}")
    if "gpm.training_run" not in tags:
        raise UserError(f"run {run}: it has no checkpoint; a study's parent run has none, its trials do")
    if "gpm.trial" in tags and tags["gpm.study"].removesuffix(CONFIRMATION) in study_names(home.optuna_uri):
        return model_of(f"{tags['gpm.study']}/{tags['gpm.trial']}", home)
    found = home.runs.named(tags["gpm.training_run"])
    if not found.checkpoints():
        raise UserError(f"run {run}: its training run {found.location} has no checkpoint on this machine")
    return _of_run(found)


def find_teacher(experiment: Experiment, home: Home) -> Experiment:
    """The experiment with a teacher that was given by its MLflow run given by its checkpoint instead.

    Raises UserError where the run has no checkpoint, or one that does not fit.
    """
    given = experiment.given_teacher
    if given is None or given.run is None:
        return experiment
    saved = model_of(given.run, home)
    try:
        experiment.check_teacher(saved.experiment)
    except ValueError as error:
        raise UserError(str(error)) from None
    plain = experiment.model_dump(mode="json")
    plain["model"]["teacher"] = {"checkpoint": str(saved.folder)}
    return Experiment.model_validate(plain)


def find_start_points(study: StudyConfig, home: Home) -> StudyConfig:
    """The study with start points that were given by MLflow runs given by their values instead.

    Raises UserError where a run has no checkpoint, or its values lie outside the search space.
    """
    starts: list[str | dict[str, Any]] = []
    for start in study.start_from:
        if isinstance(start, str) and start != "base":
            tree = model_of(start, home).experiment.model_dump(mode="json")
            try:
                space.parameters(tree, study.base, study.search)
            except ValueError as error:
                raise UserError(f"start_from: run {start}: its {error}") from None
            starts.append(space.found(tree, study.search))
        else:
            starts.append(start)
    return study.model_copy(update={"start_from": starts})
