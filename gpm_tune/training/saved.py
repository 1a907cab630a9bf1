"""Trained models on the disk of this machine: a checkpoint's weights, and as what they are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

from gpm_tune.data import DataConfig
from gpm_tune.data.fingerprint import described
from gpm_tune.errors import OtherDataError, UserError
from gpm_tune.models import ParticleModel, to_device
from gpm_tune.training import checkpoint, fitting
from gpm_tune.training.checkpoint import Record
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.machine import keep_freed_memory, limit_threads


@dataclass(frozen=True)
class SavedModel:
    """A trained model: its checkpoint's folder, which of its weights, and how it is sampled and measured."""

    experiment: Experiment
    folder: Path
    step: int  # of the weights
    weights: Literal["best", "last"]

    @classmethod
    def at(cls, folder: Path, experiment: Experiment | None = None, step: int | None = None) -> SavedModel:
        """The model of a checkpoint's folder.

        experiment: an equal training, which may be sampled otherwise; None for the checkpoint's own. step: of
        the weights; None for the best ones, or the last where nothing was evaluated yet. Raises UserError
        where the checkpoint is not whole, or does not have these weights.
        """
        record = checkpoint.read_record(folder)
        experiment = experiment or read_experiment(folder)
        if record.best and step in (None, record.best.step):
            return cls(experiment, folder, record.best.step, "best")
        if step in (None, record.step):
            return cls(experiment, folder, record.step, "last")
        raise UserError(f"{folder}: the weights of step {step} are no longer kept")

    def load(self, device: torch.device | str = "cpu") -> ParticleModel:
        """The model, ready to sample, in evaluation mode.

        Of the last weights it has the average, where there is one. Raises UserError where the checkpoint is
        damaged.
        """
        keep_freed_memory()
        limit_threads()
        found, _, _ = checkpoint.read(self.folder, torch.device(device))
        group = "average" if self.weights == "last" and "average" in found else self.weights
        # An average is stored with the name of what it averages, and with a count of its own.
        state = {
            name.removeprefix("module."): value
            for name, value in found.get(group, {}).items()
            if name != "n_averaged"
        }
        with torch.random.fork_rng():
            model = self.experiment.model.build(self.experiment.data.shape)
        try:
            fitting.check_weights(state, model.state_dict(), group)
        except fitting.MisfitError as error:
            raise checkpoint.damaged(self.folder, error) from error
        model.load_state_dict(state)
        return to_device(model, device).eval()

    @property
    def record(self) -> Record:
        """The JSON part of the checkpoint."""
        return checkpoint.read_record(self.folder)


def read_experiment(folder: Path) -> Experiment:
    """The experiment whose training wrote a checkpoint. Raises UserError where there is none whole."""
    record = checkpoint.read_record(folder)
    try:
        return Experiment.model_validate(record.experiment)
    except ValidationError as error:
        raise UserError(f"{folder}: its experiment is not one of this version: {error}") from error


def refuse_other_data(folder: Path, record: Record, data: DataConfig, found: str) -> None:
    """Raise OtherDataError where a checkpoint is of the same data set, when that held other samples.

    record: the checkpoint's. found: the data set's fingerprint now. Another data set is one on purpose.
    """
    if record.data != found and record.experiment["data"] == data.model_dump(mode="json"):
        raise OtherDataError(
            f"{folder}: {described(data)} have changed since step {record.step} was trained: their "
            f"fingerprint was {record.data}, now it is {found}. What is computed from them cannot be "
            "compared with what was\nhelp: put the data back; or train anew, in another folder or under "
            "another name"
        )
