"""The smallest real experiments and studies, shared by the tests."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpm_tune.documents import Document
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import (
    StudyConfig,
    find_file,
    include_teacher,
    load_experiment,
    load_study,
)
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.objectives import Measured
from gpm_tune.training.saved import read_experiment

POINTS: dict[str, Any] = {
    "data": {"name": "gaussians", "samples": 2000},
    "model": {
        "name": "discr_flow",
        "loss": "vanilla",
        "sampling_steps": 4,
        "eta": 5.0,
        "gradient_penalty": None,
        "time_embedding": {"size": 8},
        "discriminator": {"name": "mlp", "width": 16, "depth": 2},
    },
    "training": {"steps": 12, "batch_size": 16},
    "evaluation": {"every": 4, "nfe": [2], "samples": 200},
}

IMAGES: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {
        "name": "discr_flow",
        "sampling_steps": 3,
        "time_embedding": {"size": 8},
        "discriminator": {"name": "dcgan", "width": 4},
    },
    "evaluation": {"every": 4, "nfe": [1, 2], "samples": 20, "features": "small"},
}

SMALL_MLP: dict[str, Any] = {"name": "mlp", "width": 16, "depth": 2, "init": {"name": "default"}}
SMALL_DENOISER: dict[str, Any] = {"noise_embedding": {"name": "fourier", "size": 8}, "network": SMALL_MLP}
SMALL_UNET: dict[str, Any] = {
    "noise_embedding": {"name": "positional", "size": 8},
    "network": {"name": "unet", "channels": 8, "channel_mult": [1, 1], "blocks": 1, "dropout": 0.2},
}
DCGAN: dict[str, Any] = {"name": "dcgan", "width": 4, "norm": "batch"}

# The other models, on points; the teacher of the Score GAN is the EDM.
MODELS: dict[str, dict[str, Any]] = {
    "edm": {"name": "edm", "denoiser": SMALL_DENOISER, "sampling_steps": 4},
    "gan": {
        "name": "gan",
        "loss": "vanilla",
        "discriminator_steps": 2,
        "discriminator": SMALL_MLP,
        "latent": 4,
        "generator": SMALL_MLP,
    },
    "mmd_generator": {"name": "kernel_flow", "data_samples": 100, "latent": 4, "generator": SMALL_MLP},
}
TEACHER: dict[str, Any] = {**POINTS, "model": MODELS["edm"]}
MODELS["score_gan"] = {
    "name": "score_gan",
    "teacher": {"experiment": TEACHER},
    "score_steps": 3,
    "noise": {"sigma_min": 0.1, "sigma_max": 10.0, "rho": 3.0},
    "generated": SMALL_DENOISER,
    "latent": 4,
    "generator": SMALL_MLP,
}
IMAGE_MODELS: dict[str, dict[str, Any]] = {
    "edm": {"name": "edm", "denoiser": SMALL_UNET, "sampling_steps": 2},
    "gan": {"name": "gan", "latent": 4, "discriminator": DCGAN, "generator": DCGAN},
}
KERNEL_FLOW: dict[str, Any] = {
    **POINTS,
    "model": {"name": "kernel_flow", "data_samples": 100, "sampling_steps": 10},
    "training": {"steps": 0},
    "evaluation": {"nfe": [5], "samples": 200},
}

STUDY: dict[str, Any] = {
    "name": "small",
    "experiment": POINTS,
    "search": {
        "model.eta": {"float": [1.0, 20.0], "log": True},
        "model.sampling_steps": {"int": [2, 8], "step": 2},
        "model.loss": {"choice": ["ipm", "vanilla"]},
        "training.optimizer.lr": {"float": [1e-4, 1e-2], "log": True, "when": {"model.loss": "vanilla"}},
    },
    "sampler": {"name": "tpe", "startup_trials": 3},
    "budget": {"trials": 4},
    "resources": {"cpu": 1, "concurrent": 2},
}


def experiment_of(**changes: Any) -> Experiment:
    """The small experiment on points with values changed at dotted paths (written with __)."""
    values = {path.replace("__", "."): value for path, value in changes.items()}
    return Experiment.model_validate(space.put(POINTS, values))


def study_data(**changes: Any) -> dict[str, Any]:
    """The small study as plain data, with top-level keys replaced."""
    return {**copy.deepcopy(STUDY), **changes}


def study_of(**changes: Any) -> StudyConfig:
    """The small study, with top-level keys replaced."""
    return load_study(Document("test", study_data(**changes), {}))


def shipped_experiment(name: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    """The base experiment of a study that comes with the program, with values at dotted paths replaced."""
    document = Document.load(find_file(Path(name)))
    include_teacher(document)
    for path, value in (changes or {}).items():
        document.assign(f"experiment.{path}", value, "tests")
    return load_experiment(document)


def spoilt(folder: Path, to: Path) -> Path:
    """A checkpoint whose weights make numbers too large for single precision."""
    trainer = Trainer(read_experiment(folder))
    trainer.restore(folder)
    trainer._best_weights = {
        name: value * 1e30 if value.is_floating_point() else value
        for name, value in trainer._best_weights.items()
    }
    trainer.save(to)
    return to


def measured(value: float = 1.0, *, nfe: int = 4, seconds: float = 1.0, **more: float) -> Measured:
    """What an evaluation of points gives, at its full NFE alone."""
    return Measured(curve={nfe: {"sliced_wasserstein": value, **more}}, scalars={"seconds": seconds})
