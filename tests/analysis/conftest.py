"""Fixtures of the tests of figures and reports: models, a study, and scripts run as a user would."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from examples import IMAGE_MODELS, IMAGES, KERNEL_FLOW, experiment_of
from hand_made import told_home

from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment, Trainer

SCRIPTS = Path(__file__).parents[2] / "analysis"


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home of a study of images, `told`, with complete, pruned and failed trials; not to be changed."""
    return told_home(tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind of model, barely trained; of the GAN with two seeds."""
    root = tmp_path_factory.mktemp("models")
    gan = {**IMAGES, "model": IMAGE_MODELS["gan"]}
    experiments = {
        "edm": experiment_of(**{**IMAGES, "model": {**IMAGE_MODELS["edm"], "sampling_steps": 6}}),
        "discr_flow": experiment_of(**IMAGES),
        "gan": experiment_of(**gan),
        "gan_again": experiment_of(**gan, seed=1),
        "points": experiment_of(),
        "kernel": Experiment.model_validate(KERNEL_FLOW),
    }
    for name, experiment in experiments.items():
        trainer = Trainer(experiment)
        trainer.run_interval()
        trainer.save(root / name)
    return {name: root / name for name in experiments}


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a script of `analysis/` in this process; returns its exit code."""

    def run(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return int(ended.value.code or 0)

    return run
