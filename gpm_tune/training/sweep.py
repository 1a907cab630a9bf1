"""The sweep: what a trained model is worth at many NFE, with as few simulations as its grids allow."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpm_tune import locations
from gpm_tune.config import nearest
from gpm_tune.data.fingerprint import described, fingerprint, read
from gpm_tune.errors import OtherDataError, UserError
from gpm_tune.metrics import Quality
from gpm_tune.models.flow import evaluating
from gpm_tune.models.particle_model import last_within
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.generation import ModelSampler
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.trainer import SAMPLED_AT_ONCE, build_quality
from gpm_tune.version import __version__

_log = logging.getLogger("gpm_tune")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Measurement:
    """The metrics of a model at one NFE, and everything that the numbers depend on."""

    solver: str
    sampling_steps: int | None  # of the grid; None for a generator
    nfe: int
    samples: int
    split: str
    data_fingerprint: str  # of what was read to measure against
    features: str | None
    seed: int
    metrics: dict[str, float]
    errors: dict[str, float]  # standard errors over samples, by the bootstrap

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    def check_finite(self) -> None:
        """Raise UserError where a metric, or its error, is not finite: samples are far too large."""
        for name, value in (*self.metrics.items(), *self.errors.items()):
            if not math.isfinite(value):
                raise UserError(
                    f"{name} is {value} with {self.solver}, NFE {self.nfe}, {self.samples:,} samples: "
                    "they are too large to be measured; try another NFE or solver, or another run"
                )


@dataclass(frozen=True)
class Conditions:
    """How samples are measured."""

    split: str
    samples: int | None  # generated; None for the experiment's
    seed: int
    resamples: int  # of the bootstrap; 0 for no standard errors
    metrics: tuple[str, ...] = ()  # none for the experiment's


@dataclass(frozen=True)
class Simulation:
    """One run along a grid, and the NFE at which it is looked at; None stands for its end."""

    sampler: ModelSampler
    asked: tuple[int | None, ...]


def plan(samplers: Sequence[ModelSampler]) -> list[Simulation]:
    """The fewest simulations that serve these requests: those with the same solver and grid share one."""
    shared: dict[tuple[str, int | None], list[ModelSampler]] = {}
    for sampler in samplers:
        shared.setdefault((sampler.solver_name, sampler.sampling_steps), []).append(sampler)
    return [Simulation(group[0], tuple(sampler.nfe for sampler in group)) for group in shared.values()]


def evaluate(
    saved: SavedModel,
    *,
    nfe: Sequence[int],
    solvers: Sequence[str],
    conditions: Conditions,
    cache: Path,
    device: str,
    steps: int | None = None,
) -> list[Measurement]:
    """Measure a trained model at every NFE with every solver, or with the model's own.

    steps: of a grid that lower NFE leave early; None for the model's own or, where it knows every grid,
    for the one that fits each NFE. What was measured before, of the same weights in the same way, is
    taken from the cache. Where the data have changed since the training, a warning says so.
    Raises UserError where the model cannot be sampled like this, before anything is computed.
    """
    if conditions.resamples == 1:
        raise UserError("--resamples 1: a standard error needs at least 2 resamples; 0 leaves it out")
    check_split(conditions.split)
    known = saved.experiment.available_metrics
    for name in conditions.metrics:
        if name not in known:
            raise UserError(f"--metric {name}: unknown metric; {nearest(name, known)}")
    experiment, model = saved.experiment, saved.load(device)
    wanted = [(solver, n) for solver in (solvers or (None,)) for n in (nfe or (None,))]
    samplers = [ModelSampler(experiment, model, n, solver, steps, saved) for solver, n in wanted]
    for sampler in samplers:
        sampler.check()
    data = _look_at_data(saved)
    found: list[Measurement] = []
    needed: tuple[Quality, int] | None = None  # loaded for the first simulation that has to be measured
    for simulation in plan(samplers):
        file = cache / "measurements" / f"{_key(saved, conditions, simulation, data)}.json"
        measured = _load(file)
        if not measured:
            needed = needed or _load_quality(experiment, conditions, cache, device, data)
            measured = _measure(simulation, conditions, *needed, data)
            content = json.dumps([measurement.plain() for measurement in measured], allow_nan=False)
            locations.write(str(file), content.encode())
        found += measured
    return found


def _look_at_data(saved: SavedModel) -> str:
    """The fingerprint of what a checkpoint is measured against; warns where it was trained on other data."""
    data, trained = saved.experiment.data, saved.record.data
    found = fingerprint(data)
    if found != trained:
        _log.warning(
            "%s have changed since %s was trained (fingerprint %s, now %s): it is measured against what is "
            "there now",
            *(described(data), saved.folder, trained, found),
        )
    return found


def check_split(split: str, valid: Sequence[str] = SPLITS) -> None:
    """Raise UserError unless the split is one of those that are valid."""
    if split not in valid:
        raise UserError(f"unknown split '{split}'; {nearest(split, valid)}")


def _load_quality(
    experiment: Experiment, conditions: Conditions, cache: Path, device: str, fingerprint: str
) -> tuple[Quality, int]:
    """The metrics against the data, which have a fingerprint; and how many samples they are to have."""
    data, found = read(experiment.data, experiment.seed)
    if found != fingerprint:
        raise OtherDataError(f"{described(experiment.data)} have just changed\nhelp: evaluate again")
    metrics = conditions.metrics or tuple(experiment.metrics)
    quality = build_quality(experiment, metrics, data, conditions.split, cache, torch.device(device))
    return quality, conditions.samples or experiment.samples_beside(len(getattr(data, conditions.split)))


def _measure(
    simulation: Simulation, conditions: Conditions, quality: Quality, count: int, data: str
) -> list[Measurement]:
    """Every state that the simulation is looked at, each batch's features extracted as it comes."""
    sampler, resamples, seed = simulation.sampler, conditions.resamples, conditions.seed
    model = sampler.model
    rng = torch.Generator(model.origin.device).manual_seed(seed)
    features: dict[int, list[Tensor]] = {}
    with evaluating(model):
        for start in range(0, count, SAMPLED_AT_ONCE):
            noise = model.noise(min(SAMPLED_AT_ONCE, count - start), rng)
            for state in last_within(model.process(noise, rng, sampler.options), simulation.asked):
                features.setdefault(state.nfe, []).append(quality.features(sampler.check_finite(state).x))
    found: list[Measurement] = []
    for nfe, parts in features.items():
        x = torch.cat(parts)
        measurement = Measurement(
            solver=sampler.solver_name,
            sampling_steps=sampler.sampling_steps,
            nfe=nfe,
            samples=count,
            split=conditions.split,
            data_fingerprint=data,
            features=sampler.experiment.features,
            seed=seed,
            metrics=quality.measure(x),
            errors=quality.errors(x, resamples, seed) if resamples else {},
        )
        measurement.check_finite()
        found.append(measurement)
    return found


def _key(saved: SavedModel, conditions: Conditions, simulation: Simulation, data: str) -> str:
    """A digest of all that measurements depend on."""
    sampler = simulation.sampler
    parts = [
        __version__,
        saved.record.model_dump(include={"files"})["files"],
        saved.weights,
        saved.experiment.model_dump(mode="json"),
        data,
        asdict(conditions),
        sampler.solver_name,
        sampler.sampling_steps,
        simulation.asked,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _load(file: Path) -> list[Measurement]:
    """What was kept; nothing where there is no such file, or it is damaged."""
    try:
        return [Measurement(**plain) for plain in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError):
        return []
