"""What is done to studies besides running them: stopped, deleted."""

from __future__ import annotations

import shutil
import time

import optuna

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.database import open_storage
from gpm_tune.study.accounts.records import count_trials
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.patience import Patience
from gpm_tune.study.storage import shared_storage
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import is_held

LOOK_EVERY = 0.5  # seconds


def is_running(home: Home, name: str) -> bool:
    """Whether some process runs the study now."""
    return is_held(home.study(name))


def stop(home: Home, name: str, wait: bool) -> bool:
    """Ask the process that runs a study to stop; with `wait`, until it has. Returns False if none runs it.

    Raises UserError where there is no such study.
    """
    count_trials(home.optuna_uri, name)
    if not is_running(home, name):
        return False
    home.stop_file(name).touch()
    while wait and is_running(home, name):
        time.sleep(LOOK_EVERY)
    return True


def delete(home: Home, name: str) -> None:
    """Delete a study's trials, checkpoints and tracked runs, so that its name is free again.

    MLflow keeps what it deletes until `mlflow gc`. Raises UserError for an unknown or a running study.
    """
    count_trials(home.optuna_uri, name)
    if is_running(home, name):
        raise UserError(f"study '{name}' is running; stop it first: gpm-tune stop {name}")
    storage, stage = open_storage(home.optuna_uri, Patience()), name + CONFIRMATION
    if home.is_tracked:
        _delete_runs(home, name)
    for stored in filter(None, (home.stored(name), home.stored(name + CONFIRMATION))):
        shared_storage.delete(stored)
    if stage in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=stage, storage=storage)
        shutil.rmtree(home.study(stage), ignore_errors=True)
    shutil.rmtree(home.study(name), ignore_errors=True)
    optuna.delete_study(study_name=name, storage=storage)  # last: until then it can be repeated


def _delete_runs(home: Home, name: str) -> None:
    client = home.mlflow()
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "active":
        # A deleted experiment keeps its name: another one could not have it.
        client.rename_experiment(experiment.experiment_id, f"{name} (deleted {experiment.experiment_id})")
        client.delete_experiment(experiment.experiment_id)
