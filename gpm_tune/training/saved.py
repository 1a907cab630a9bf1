"""Trained models, from their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

from gpm_tune.errors import UserError
from gpm_tune.models import ParticleModel, place
from gpm_tune.training import checkpoint
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.machine import keep_freed_memory


def read_experiment(folder: Path) -> Experiment:
    """The experiment whose training wrote a checkpoint. Raises UserError where there is none whole."""
    record = checkpoint.read_record(folder)
    try:
        return Experiment.model_validate(record["experiment"])
    except (KeyError, ValidationError) as error:
        raise UserError(f"{folder}: its experiment is not one of this version: {error}") from error


def load_model(
    folder: Path, device: torch.device | str = "cpu", weights: Literal["best", "last"] = "best"
) -> tuple[Experiment, ParticleModel]:
    """The experiment and the model of a checkpoint, ready to sample, in evaluation mode.

    weights: those of the best evaluation, or the last ones, averaged where averages were evaluated.
    Raises UserError where the folder holds no whole checkpoint, or it has no such weights yet.
    """
    keep_freed_memory()
    experiment = read_experiment(folder)
    found = checkpoint.read(folder, torch.device(device))[0]
    if weights == "best" and "best" not in found:
        raise UserError(f"{folder}: nothing was evaluated before this checkpoint; ask for the last weights")
    state = found["best"] if weights == "best" else found.get("average", found["last"])
    # An average is stored with the name of what it averages, and with a count of its own.
    state = {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
    with torch.random.fork_rng():
        model = experiment.model.build(experiment.data.shape)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{folder}: its weights do not fit its experiment: {error}") from error
    return experiment, place(model, device).eval()
