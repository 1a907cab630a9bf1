"""The experiments whose speed is measured: the bases of the studies that come with the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gpm_tune.training import Experiment

STUDIES = Path(__file__).parent.parent / "search_spaces"
MODELS = ("discr_flow", "edm", "score_gan", "gan")
CASES = (*MODELS, *(f"{name}_gaussians" for name in MODELS))


def shipped(case: str) -> Experiment:
    """The base experiment of a study; with features that need no download.

    Read without the study's own code, so that a machine with torch alone can measure.
    """
    data = _read(case)
    model: dict[str, Any] = data["model"]
    if "teacher" in model:
        model["teacher"] = {"experiment": _read(model["teacher"]["experiment"].removesuffix(".yaml"))}
    experiment = Experiment.model_validate(data)
    features = "small" if experiment.features else None
    return experiment.model_copy(
        update={"evaluation": experiment.evaluation.model_copy(update={"features": features})}
    )


def _read(case: str) -> dict[str, Any]:
    experiment: dict[str, Any] = yaml.safe_load((STUDIES / f"{case}.yaml").read_text())["experiment"]
    return experiment
