"""What is done to studies besides running them: stopped, compared, deleted."""

from __future__ import annotations

import shutil
import time

import optuna
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import StudyRecord, read_confirmation, read_study
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.storage import shared_storage
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import is_held
from gpm_tune.study.views.results import show_value, states
from gpm_tune.training.objectives import metric_label

LOOK_EVERY = 0.5  # seconds


def is_running(home: Home, name: str) -> bool:
    """Whether some process runs the study now."""
    return is_held(home.study(name))


def stop(home: Home, name: str, wait: bool) -> bool:
    """Ask the process that runs a study to stop; with `wait`, until it has. Returns False if none runs it.

    Raises UserError where there is no such study.
    """
    read_study(home.optuna_uri, name)
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
    read_study(home.optuna_uri, name)
    if is_running(home, name):
        raise UserError(f"study '{name}' is running; stop it first: gpm-tune stop {name}")
    stage = read_confirmation(home.optuna_uri, name)
    if home.is_tracked:
        _delete_runs(home, name)
    for stored in filter(None, (home.stored(name), home.stored(name + CONFIRMATION))):
        shared_storage.delete(stored)
    if stage is not None:
        optuna.delete_study(study_name=stage.name, storage=home.optuna_uri)
        shutil.rmtree(home.study(stage.name), ignore_errors=True)
    shutil.rmtree(home.study(name), ignore_errors=True)
    optuna.delete_study(study_name=name, storage=home.optuna_uri)  # last: until then it can be repeated


def _delete_runs(home: Home, name: str) -> None:
    client = home.mlflow()
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "active":
        # A deleted experiment keeps its name: another one could not have it.
        client.rename_experiment(experiment.experiment_id, f"{name} (deleted {experiment.experiment_id})")
        client.delete_experiment(experiment.experiment_id)


def comparison(records: list[StudyRecord]) -> Table:
    """Studies side by side, each by its best trial. Raises UserError where they measured different things."""
    _refuse_other_measures(records)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for record in records:
        table.add_column(record.name, justify="right")
    best = [record.ranked()[0] if record.ranked() else None for record in records]
    for index, objective in enumerate(records[0].objectives):
        scores = [f"{trial.scores[index]:.4g}" if trial and trial.scores else "-" for trial in best]
        table.add_row(metric_label(objective.metric, records[0].features), *scores)
    table.add_row("best trial", *(str(trial.number) if trial else "-" for trial in best))
    table.add_row("NFE", *(f"{trial.metrics['nfe']:g}" if trial else "-" for trial in best))
    table.add_row("at step", *(str(trial.best_step) if trial else "-" for trial in best))
    table.add_row("trials", *(states(record) for record in records))
    table.add_row("hours", *(f"{record.hours:.2f}" for record in records))
    table.add_row("GPU-hours", *(f"{record.gpu_hours:.2f}" for record in records))
    table.add_row("model", *(record.experiment["model"]["name"] for record in records))
    for path in dict.fromkeys(path for record in records for path in record.search):
        values = [show_value(trial.values[path]) if trial and path in trial.values else "-" for trial in best]
        table.add_row(path, *values)
    return table


def _refuse_other_measures(records: list[StudyRecord]) -> None:
    first = records[0]
    for other in records[1:]:
        here, there = first.measure, other.measure
        differing = [key for key in here if here[key] != there[key]]
        if differing:
            raise UserError(
                f"studies '{first.name}' and '{other.name}' cannot be compared: they differ in "
                + ", ".join(f"{key} ({here[key]}; {there[key]})" for key in differing)
            )
