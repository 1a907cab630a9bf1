"""The smallest real experiments and studies, shared by the tests."""

from __future__ import annotations

import copy
from typing import Any

from gpm_tune.documents import Document
from gpm_tune.study import space
from gpm_tune.study.specification import Study, load_study
from gpm_tune.training import Experiment

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


def study_of(**changes: Any) -> Study:
    """The small study, with top-level keys replaced."""
    return load_study(Document("test", study_data(**changes), {}))
