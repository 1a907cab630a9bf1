"""The frozen denoiser that a Score GAN follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpm_tune.errors import UserError
from gpm_tune.models.flow import Denoise
from gpm_tune.paths import expand
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.saved import SavedModel, refuse_other_data


def load_teacher(
    experiment: Experiment, teacher: SavedModel | None, device: torch.device, data: str
) -> Denoise | None:
    """D_data without gradients; None for a model that has no teacher.

    In evaluation mode, unless its dropout is to act in the scores that the generator follows. teacher: one
    that is given by its experiment. data: the fingerprint of what the experiment reads.

    Raises UserError where the teacher is missing, or damaged, and OtherDataError where the data have changed
    since it was trained.
    """
    if experiment.given_teacher is None:
        return None
    teacher = teacher or given_teacher(experiment)
    if teacher is None:
        raise UserError("model.teacher: it has not been trained yet")
    refuse_other_data(teacher.folder, teacher.record, experiment.data, data)
    denoiser = teacher.load(device).flow.network
    return freeze(denoiser.train(experiment.model.teacher_dropout))


def given_teacher(experiment: Experiment) -> SavedModel | None:
    """The teacher that is given by its checkpoint; None where there is none, or it is given otherwise.

    Raises UserError where it cannot be loaded, or does not fit.
    """
    given = experiment.given_teacher
    if given is None or given.experiment is not None:
        return None
    if given.checkpoint is None:
        raise UserError(f"model.teacher.run: {given.run} is known to MLflow only; give its checkpoint")
    found = SavedModel.at(expand(given.checkpoint))
    try:
        experiment.check_teacher(found.experiment)
    except ValueError as error:
        raise UserError(f"{found.folder}: {error}") from error
    return found


def freeze(denoiser: nn.Module) -> Denoise:
    """A denoiser's network, frozen for good, as a function: so it is no part of the model that follows it."""
    denoiser.requires_grad_(False)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised: Tensor = denoiser(x, sigma)
        return denoised

    return denoise
