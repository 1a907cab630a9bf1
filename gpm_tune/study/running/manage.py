"""What is done to studies besides running them: stopped, deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna
from sqlalchemy.exc import SQLAlchemyError

from gpm_tune import locations
from gpm_tune.errors import UserError, first_line
from gpm_tune.lease import holder_of
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.database import open_storage
from gpm_tune.study.accounts.records import count_trials, run_user
from gpm_tune.study.cluster.fetching import stored_id
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import is_held, lease_of
from gpm_tune.study.tracking.sender import KEY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS_A_PAGE = 1000
LOOK_EVERY = 0.5  # seconds
KEEP_RUNS = "help: or leave what MLflow has of the study: --keep-runs"


def is_running(home: Home, name: str) -> bool:
    """Whether some process runs the study now."""
    return is_held(home.study(name))


def stop(home: Home, name: str, wait: bool) -> bool:
    """Ask the process that runs a study to stop; with `wait`, until it has. Returns False if none runs it.

    Raises UserError where there is no such study, or it is run from another home.
    """
    count_trials(home.optuna_uri, name)
    if not is_running(home, name):
        _refuse_elsewhere(home, name)
        return False
    home.stop_file(name).touch()
    while wait and is_running(home, name):
        time.sleep(LOOK_EVERY)
    return True


def _refuse_elsewhere(home: Home, name: str) -> None:
    """Raise UserError where a process runs the study from another home, by the lease in their storage."""
    stored = home.stored(name)
    holder = holder_of(lease_of(stored)) if stored else None
    if holder:
        raise UserError(f"study '{name}' is run from another home, by {holder}\nhelp: stop it there")


def delete(home: Home, name: str, *, keep_runs: bool = False) -> list[str]:
    """Delete a study's trials, its runs in MLflow, and training runs that nothing else uses.

    Its name is free again then.

    MLflow keeps runs that it deletes until `mlflow gc`. keep_runs: leave all that MLflow has of the study,
    whose store need not be there. Returns what else went or stayed there, in sentences. Raises UserError for
    an unknown or a running study, and where MLflow's store cannot be used.
    """
    count_trials(home.optuna_uri, name)
    if is_running(home, name):
        raise UserError(f"study '{name}' is running; stop it first: gpm-tune stop {name}")
    stored = _check_stored(home, name)
    storage, stage = open_storage(home.optuna_uri, Patience()), name + CONFIRMATION
    stages = [found for found in optuna.get_all_study_names(storage) if found in (name, stage)]
    attributes = [optuna.load_study(study_name=found, storage=storage).user_attrs for found in stages]
    ids = {found["id"] for found in attributes if "id" in found}
    notes = [] if keep_runs else _delete_tracked(home, name, ids)
    for runs in (home.runs, home.alone.runs) if home.storage else (home.runs,):
        for run in map(runs.named, runs.names()):
            for identifier in ids:
                run.leave(run_user(identifier))
    if stored in ids:
        locations.delete(f"{home.stored(name)}")
    if stage in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=stage, storage=storage)
    shutil.rmtree(home.study(name), ignore_errors=True)
    optuna.delete_study(study_name=name, storage=storage)  # last: until then it can be repeated
    return notes


def _check_stored(home: Home, name: str) -> str | None:
    """The id of the study of this name in the storage, if there is one.

    Raises UserError where the storage is away, or another home runs the study there.
    """
    if home.storage is None:
        return None
    try:
        home.runs.check()
        holder = holder_of(lease_of(f"{home.stored(name)}"))
        found = stored_id(name, home)
    except OSError as error:
        raise UserError(
            f"the storage {home.storage} cannot be read: {error}; the study is still there\n"
            "help: the same command again deletes it once the storage is back"
        ) from None
    if holder:
        raise UserError(f"study '{name}' is running: {home.stored(name)} is held by {holder}; stop it first")
    return found


def _delete_tracked(home: Home, name: str, ids: set[str]) -> list[str]:
    """Delete the runs of a study and its stage of new seeds, and the models registered from them."""
    if not home.is_tracked:
        return []
    from mlflow.exceptions import MlflowException

    try:
        client = home.mlflow()
        experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != "active":
            return []
        runs = _runs(client, experiment.experiment_id)
        own = [run for run, key in runs.items() if key.partition("/")[0] in ids]
        notes = _delete_models(client, name, own)
        for run in own:
            client.delete_run(run)
        others = len(runs) - len(own)
        if others:
            kept = "a run that is" if others == 1 else f"{others} runs that are"
            return [*notes, f"MLflow's experiment '{name}' stays: it has {kept} not the study's"]
        # A deleted experiment keeps its name: another one could not have it.
        client.rename_experiment(experiment.experiment_id, f"{name} (deleted {experiment.experiment_id})")
        client.delete_experiment(experiment.experiment_id)
    except UserError as error:
        raise UserError(f"{error}\n{KEEP_RUNS}") from None
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(
            f"MLflow's store, which has the study's runs, does not answer ({first_line(error)}); the study "
            f"is still there\nhelp: the same command again deletes it once the store answers\n{KEEP_RUNS}"
        ) from None
    return notes


def _runs(client: MlflowClient, experiment: str) -> dict[str, str]:
    """The ids of an experiment's runs, each with the key that the publisher gave it, or none."""
    found: dict[str, str] = {}
    page = None
    while page != "":
        runs = client.search_runs([experiment], max_results=RUNS_A_PAGE, page_token=page)
        found |= {run.info.run_id: run.data.tags.get(KEY_TAG, "") for run in runs}
        page = runs.token or ""
    return found


def _delete_models(client: MlflowClient, name: str, runs: Sequence[str]) -> list[str]:
    """Delete the versions of a study's registered model whose checkpoints were of these runs."""
    versions = client.search_model_versions(f"name = '{name}'")
    gone = [version for version in versions if version.run_id in runs]
    for version in gone:
        client.delete_model_version(name, version.version)
    if not gone:
        return []
    if len(gone) == len(versions):
        client.delete_registered_model(name)
        return [f"the registered model '{name}', whose versions were of its runs, is deleted, too"]
    numbers = ", ".join(sorted(str(version.version) for version in gone))
    return [f"of the registered model '{name}', version {numbers} is deleted, too"]
