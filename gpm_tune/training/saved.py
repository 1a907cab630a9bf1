"""Trained models, from their checkpoints; and where those are kept that the same experiment finds again."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from gpm_tune.data import DataConfig
from gpm_tune.data.fingerprint import described, digest
from gpm_tune.errors import OtherDataError, UserError
from gpm_tune.models import ParticleModel, to_device
from gpm_tune.training import checkpoint, fitting
from gpm_tune.training.checkpoint import Record
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.machine import keep_freed_memory, limit_threads

_log = logging.getLogger("gpm_tune")


def run_name(experiment: Experiment, exclude: Mapping[str, Any] | None = None) -> str:
    """What names a run's folder: EXPERIMENT-DATA, digests of the experiment and of the data that it reads.

    exclude: keys of the experiment that make no difference, as pydantic takes them.
    Raises UserError where the data cannot be had.
    """
    plain = experiment.model_dump_json(exclude=exclude)
    return f"{hashlib.sha256(plain.encode()).hexdigest()[:12]}-{digest(experiment.fingerprints)[:8]}"


def note_of_other_data(folder: Path, data: DataConfig) -> str | None:
    """A sentence where a run's folder, not begun yet, has a sister of the same experiment on other data."""
    pattern = f"{glob.escape(folder.name.rpartition('-')[0])}-????????"
    sisters = [run for run in folder.parent.glob(pattern) if run != folder and checkpoint.latest(run)]
    if not sisters or checkpoint.latest(folder):
        return None
    return f"{described(data)} have changed since {sisters[0]} was trained: it is trained anew, in {folder}"


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


def read_experiment(folder: Path) -> Experiment:
    """The experiment whose training wrote a checkpoint. Raises UserError where there is none whole."""
    record = checkpoint.read_record(folder)
    try:
        return Experiment.model_validate(record.experiment)
    except ValidationError as error:
        raise UserError(f"{folder}: its experiment is not one of this version: {error}") from error


def first_sound(folders: Iterable[Path]) -> Path:
    """The first of a run's checkpoints, newest first, that can be loaded.

    A warning says what was passed over. Raises UserError, that of the newest, where none can.
    """
    errors: list[UserError] = []
    for folder in folders:
        try:
            _load(folder, torch.device("cpu"), None)
        except UserError as error:
            errors.append(error)
            continue
        if errors:
            _log.warning("%s; the one before is used: %s", "; ".join(map(str, errors)), folder)
        return folder
    raise errors[0] if errors else UserError("no checkpoint is here")


def load_model(
    folder: Path, device: torch.device | str = "cpu", weights: Literal["best", "last"] = "best"
) -> tuple[Experiment, ParticleModel]:
    """The experiment and the model of a checkpoint, ready to sample, in evaluation mode.

    weights: those of the best evaluation, or the last ones, averaged where averages were evaluated.
    Raises UserError where the folder holds no whole checkpoint, or it has no such weights yet.
    """
    keep_freed_memory()
    limit_threads()
    experiment, model = _load(folder, torch.device(device), weights)
    return experiment, to_device(model, device).eval()


def _load(
    folder: Path, device: torch.device, weights: Literal["best", "last"] | None
) -> tuple[Experiment, ParticleModel]:
    """See `load_model`; weights: None for the best ones where there are some."""
    experiment = read_experiment(folder)
    found, _, record, _ = checkpoint.read(folder, device)
    if weights == "best" and record.best is None:
        raise UserError(f"{folder}: nothing was evaluated before this checkpoint; ask for the last weights")
    group = "best" if record.best and weights != "last" else "average" if "average" in found else "last"
    state = found.get(group, {})
    # An average is stored with the name of what it averages, and with a count of its own.
    state = {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
    with torch.random.fork_rng():
        model = experiment.model.build(experiment.data.shape)
    try:
        fitting.check_weights(state, model.state_dict(), group)
    except fitting.MisfitError as error:
        raise checkpoint.damaged(folder, error) from error
    model.load_state_dict(state)
    return experiment, model
