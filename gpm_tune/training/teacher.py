"""The frozen denoiser that a Score GAN follows: where it is, and what it must fit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gpm_tune.errors import UserError
from gpm_tune.models.flow import Denoise
from gpm_tune.paths import expand
from gpm_tune.training import checkpoint
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.saved import load_model, read_experiment, refuse_other_data, run_name


def teacher_folder(teacher: Experiment, cache: Path) -> Path:
    """Where a teacher that is given by its experiment is kept: of the same data the same folder.

    Raises UserError where its data cannot be had.
    """
    return cache / "teachers" / run_name(teacher)


def is_trained(teacher: Experiment, cache: Path) -> bool:
    """Whether a teacher that is given by its experiment has been trained to its end.

    Raises UserError where its data cannot be had.
    """
    latest = checkpoint.latest(teacher_folder(teacher, cache))
    if latest is None:
        return False
    return checkpoint.read_record(latest).evaluated_step >= teacher.training.steps


def teacher_checkpoint(experiment: Experiment, cache: Path | None, data: str = "") -> Path | None:
    """The checkpoint of the experiment's teacher, checked against its data; None where it has no teacher.

    data: their fingerprint; empty where they are not read. Raises UserError where the teacher is missing, or
    made for something else, and OtherDataError where the data have changed since it was trained.
    """
    given = experiment.given_teacher
    if given is None:
        return None
    if given.run is not None:
        raise UserError(f"model.teacher.run: {given.run} is known to MLflow only; give its checkpoint")
    folder = expand(given.checkpoint) if given.checkpoint else None
    if experiment.teacher is not None:
        folder = checkpoint.latest(teacher_folder(experiment.teacher, cache)) if cache else None
    if folder is None:
        raise UserError("model.teacher: it has not been trained yet; train it first (`train_teacher`)")
    try:
        experiment.check_teacher(read_experiment(folder))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    if data:
        refuse_other_data(folder, checkpoint.read_record(folder), experiment.data, data)
    return folder


def load_teacher(
    experiment: Experiment, cache: Path | None, device: torch.device, data: str = ""
) -> Denoise | None:
    """D_data with its best weights and without gradients; None if there is none.

    In evaluation mode, unless its dropout is to act in the scores that the generator follows. data and
    errors: as of `teacher_checkpoint`.
    """
    folder = teacher_checkpoint(experiment, cache, data)
    if folder is None:
        return None
    _, model = load_model(folder, device)
    return freeze(model.flow.network.train(experiment.model.teacher_dropout))


def freeze(denoiser: nn.Module) -> Denoise:
    """A denoiser's network, frozen for good, as a function: so it is no part of the model that follows it."""
    denoiser.requires_grad_(False)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised: Tensor = denoiser(x, sigma)
        return denoised

    return denoise
