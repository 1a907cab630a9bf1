"""Homes with studies that were driven by hand: everything real, except that nothing was trained."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from examples import IMAGES, POINTS, study_of
from rich.console import Console

from gpm_tune.study.accounts.ledger import Ledger
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import Study
from gpm_tune.study.running.conductor import Conductor
from gpm_tune.study.running.progress import StudyProgress
from gpm_tune.study.running.run import _open_parent
from gpm_tune.study.storage.home import Home
from gpm_tune.study.tracking.tracker import Tracker

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
Tell = Callable[[Mapping[str, Any]], Story]
STORIES: list[Story] = [
    ([90.0, 60.0, 50.0], None),
    ([80.0, 40.0, 45.0], None),
    ([400.0], None),  # stopped by the scheduler
    ([70.0, 30.0], "loss was nan at step 9"),
    ([], "CUDA is out of memory"),
    ([75.0, 55.0, 42.0], None),
]


def digits_study(trials: int = len(STORIES), **changes: Any) -> Study:
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


def drive(home: Home, study: Study, stories: Sequence[Story]) -> None:
    """Let the study's trials have these stories one after the other, and track them."""
    told = iter(stories)
    with Tracker(
        home.study(study.name) / "spool", home.tracking_uri, study.name, home.artifact_root
    ) as tracker:
        ledger = open_ledger(home, study)
        console = Console(file=io.StringIO())
        with StudyProgress(study, ledger.remaining, console) as progress:
            conductor = Conductor(ledger, tracker, progress)
            parent = _open_parent(ledger, home, tracker)
            conductor.report_to(parent)
            while assignment := conductor.assign():
                values, failure = next(told)
                tell(conductor, home, assignment.number, assignment.values, values, failure)
        parent.end("FINISHED")


def open_ledger(home: Home, study: Study) -> Ledger:
    """The study's ledger, with its file in its folder."""
    folder = home.study(study.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    return Ledger(study, home.optuna_uri, home.checkpoints(study.name))


def tell(
    conductor: Conductor,
    home: Home,
    number: int,
    searched: Mapping[str, Any],
    values: Sequence[float],
    failure: str | None,
) -> None:
    """One trial's story."""
    nfe = searched.get("model.sampling_steps", 3)
    for index, value in enumerate(values, start=1):
        step = index * EVERY
        if conductor.measured(number, step, evaluation(step, value, nfe)):
            break
    picture = home.root / f"checkpoint_{number}"
    picture.mkdir(exist_ok=True)
    (picture / "best.png").write_bytes(png(number))
    conductor.checkpointed(number, str(picture), {})
    conductor.ended(number, failure)


def evaluation(step: int, value: float, nfe: int, metric: str = "fid") -> dict[str, float]:
    """What an evaluation at a step reports: half the NFE gives twice the value."""
    return {
        metric: value,
        f"{metric}/nfe_{nfe}": value,
        f"{metric}/nfe_1": 2 * value,
        "nfe": float(nfe),
        "seconds": step * SECONDS_A_STEP,
        "system/energy": step * JOULES_A_STEP,
    }


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
