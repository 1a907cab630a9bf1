"""From what a person calls a run to its checkpoint: a folder, or an MLflow run id."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from gpm_tune.errors import UserError
from gpm_tune.models import ScoreGANConfig
from gpm_tune.study.storage import shared_storage
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment, checkpoint
from gpm_tune.training.saved import read_experiment

RUN_ID = re.compile(r"^[0-9a-f]{32}$")


def checkpoint_of(run: str, home: Home) -> Path:
    """The checkpoint of a run: its folder, the newest in the folder of a single experiment, or MLflow's tag.

    Raises UserError where there is none.
    """
    folder = Path(run)
    if (folder / "checkpoint.json").is_file():
        return folder
    newest = checkpoint.latest(folder)
    if newest is not None:
        return newest
    if not RUN_ID.match(run):
        raise UserError(
            f"{run}: neither the folder of a checkpoint (one with a checkpoint.json) nor an MLflow run id "
            "(32 hexadecimal digits); `gpm-tune best STUDY` names the checkpoint of a study's best trial"
        )
    tagged = shared_storage.local(_tag(run, home), home.cache)
    if not (tagged / "checkpoint.json").is_file():
        raise UserError(f"run {run}: its checkpoint {tagged} is not on this machine")
    return tagged


def _tag(run_id: str, home: Home) -> str:
    """The checkpoint that a run's tag names."""
    if not home.is_tracked:
        raise UserError(f"run {run_id}: nothing has been tracked in {home.tracking_uri} yet")
    client = home.mlflow()
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        raise UserError(f"run {run_id}: {error.message}, in {home.tracking_uri}") from None
    if "gpm.checkpoint" not in tags:
        raise UserError(f"run {run_id}: it has no checkpoint; a study's parent run has none, its trials do")
    return str(tags["gpm.checkpoint"])


def choose_device(wanted: str | None) -> str:
    """The device asked for, or the best there is. Raises UserError where it is not here."""
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    device = wanted or available[0]
    if device.split(":")[0] not in available:
        raise UserError(f"--device {device}: not on this machine; valid: {', '.join(available)}")
    return device


def find_teacher(experiment: Experiment, home: Home) -> Experiment:
    """The experiment with a teacher that was given by its MLflow run given by its checkpoint instead.

    Raises UserError where the run has no checkpoint, or one that does not fit.
    """
    model = experiment.model
    if not isinstance(model, ScoreGANConfig) or model.teacher.run is None:
        return experiment
    folder = checkpoint_of(model.teacher.run, home)
    try:
        experiment.check_teacher(read_experiment(folder))
    except ValueError as error:
        raise UserError(str(error)) from None
    plain = experiment.model_dump(mode="json")
    plain["model"]["teacher"] = {"checkpoint": str(folder)}
    return Experiment.model_validate(plain)
