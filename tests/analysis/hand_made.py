"""Homes with studies that were driven by hand: everything real, except that nothing was trained."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from examples import IMAGES, POINTS, study_of
from rich.console import Console

from gpm_tune.study.accounts.population import trial_manager
from gpm_tune.study.accounts.records import run_user
from gpm_tune.study.accounts.trial_manager import TrialManager, TrialSpec
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.study.running.controller import StudyController
from gpm_tune.study.running.progress import StudyProgress
from gpm_tune.study.running.publishing import StudyViews
from gpm_tune.study.storage.home import Home
from gpm_tune.training.objectives import Measured
from gpm_tune.training.run import TrainingRun
from gpm_tune.training.trainer import Evaluation

EVERY = 4  # steps between evaluations
SECONDS_A_STEP = 0.5
JOULES_A_STEP = 100.0
DIGITS = space.put(POINTS, IMAGES)
SEARCH = {
    "model.eta": {"float": [1.0, 4.0], "log": True},
    "model.sampling_steps": {"int": [2, 4]},
    "model.loss": {"choice": ["ipm", "hinge"]},
}
# What each trial measures every EVERY steps, and why it fails, if it does.
Story = tuple[Sequence[float], str | None]
STORIES: list[Story] = [
    ([90.0, 60.0, 50.0], None),
    ([80.0, 40.0, 45.0], None),
    ([400.0], None),  # stopped by the scheduler
    ([70.0, 30.0], "loss was nan at step 9"),
    ([], "CUDA is out of memory"),
    ([75.0, 55.0, 42.0], None),
]


def digits_study(trials: int = len(STORIES), **changes: Any) -> StudyConfig:
    """A study of images whose scheduler stops the worst half after the first evaluation."""
    study: dict[str, Any] = {
        "name": "told",
        "experiment": DIGITS,
        "search": SEARCH,
        "scheduler": {"name": "asha", "grace_steps": EVERY, "reduction_factor": 2},
        "budget": {"trials": trials},
        "sampler": {"name": "random", "seed": 1},
        "resources": {"cpu": 1, "gpu": 0.5},
    }
    return study_of(**{**study, **changes})


def drive(home: Home, study: StudyConfig, stories: Sequence[Story]) -> None:
    """Let the study's trials have these stories one after the other, and track them."""
    told = iter(stories)
    manager = open_ledger(home, study)
    views = StudyViews(home, study.name, is_running=False)
    console = Console(file=io.StringIO())
    with StudyProgress(study, manager.remaining, console) as progress:
        controller = StudyController(manager, bool, progress)
        while spec := controller.assign():
            values, failure = next(told)
            tell(controller, home, spec, values, failure)
    with views.publisher() as publisher:
        publisher.touch(*views.keys())


def open_ledger(home: Home, study: StudyConfig) -> TrialManager:
    """The study's trial manager, with its file in its folder."""
    folder = home.study(study.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    return trial_manager(study, home.optuna_uri, home.open_runs())


def tell(
    controller: StudyController, home: Home, spec: TrialSpec, values: Sequence[float], failure: str | None
) -> None:
    """One trial's story."""
    number = spec.number
    user = run_user(controller.study_id)
    run = open_run(home, spec, user)
    controller.trains(number, run.name)
    judge = spec.experiment.judge()
    nfe = spec.values.get("model.sampling_steps", 3)
    for index, value in enumerate(values, start=1):
        step = index * EVERY
        measured = Evaluation(step, evaluation(step, value, nfe), png(number))
        run.keep_evaluation(measured, judge, "cpu", user)
        if controller.measured(number, step, measured.measured):
            break
    controller.ended(number, failure)


def open_run(home: Home, spec: TrialSpec, user: str = "study") -> TrainingRun:
    """The training run of a trial, with nothing in it."""
    run = home.open_runs().of(spec.experiment)
    run.create(spec.experiment, user)
    return run


def evaluation(step: int, value: float, nfe: int, metric: str = "fid") -> Measured:
    """What an evaluation at a step reports: half the NFE gives twice the value."""
    scalars = {"seconds": step * SECONDS_A_STEP, "system/energy": step * JOULES_A_STEP}
    return Measured(curve={1: {metric: 2 * value}, nfe: {metric: value}}, scalars=scalars)


def png(number: int) -> bytes:
    """A picture, unlike that of another trial."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (4, 4), number * 20).save(file, "PNG")
    return file.getvalue()


def told_home(root: Path) -> Home:
    """A home with the study `told`: complete, pruned and failed trials."""
    home = Home(root, f"sqlite:///{root / 'mlflow.db'}")
    drive(home, digits_study(), STORIES)
    return home
