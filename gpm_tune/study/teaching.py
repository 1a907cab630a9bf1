"""The stage before the trials: the teacher that they share is trained once, on the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from gpm_tune.errors import DivergedError, UserError
from gpm_tune.study.home import Home
from gpm_tune.study.specification import Study
from gpm_tune.study.trainable import Interruption
from gpm_tune.training import Experiment, checkpoint
from gpm_tune.training.pretraining import train_teacher
from gpm_tune.training.teacher import teacher_folder

LOOK_EVERY = 0.5  # seconds between looks at the task: signals are handled in between


def teach(study: Study, home: Home, switch: Any, console: Console) -> bool:
    """Train the study's teacher, if it has one to be trained. Returns False if interrupted.

    Raises DivergedError where the teacher's numbers stop being finite.
    """
    teacher = study.experiment.teacher
    if teacher is None:
        return True
    folder = teacher_folder(teacher, home.cache)
    console.print(
        f"teacher: {teacher.model.name} on {teacher.data.name}, {teacher.training.steps} steps, in {folder}",
        highlight=False,
    )
    resources = study.resources
    task = _train.options(num_cpus=resources.cpu, num_gpus=resources.gpu).remote(
        teacher.model_dump(mode="json"), str(home.cache), resources.cpu, bool(resources.gpu), switch
    )
    while not ray.wait([task], timeout=LOOK_EVERY)[0]:
        pass
    outcome = ray.get(task)
    if isinstance(outcome, str):
        raise DivergedError(f"the teacher: {outcome}")
    latest = checkpoint.latest(folder) if outcome else None
    if latest:
        best = checkpoint.read_record(latest)["best"]
        metric = teacher.default_objective.metric
        console.print(f"teacher: best {metric} {best['metrics'][metric]:.4g}", highlight=False)
    return bool(outcome)


@ray.remote  # type: ignore[untyped-decorator]
def _train(teacher: dict[str, Any], cache: str, threads: int, gpu: bool, switch: Any) -> bool | str:
    """Whether the teacher is trained, or the reason why it cannot be."""
    torch.set_num_threads(threads)
    try:
        return train_teacher(
            Experiment.model_validate(teacher),
            Path(cache),
            "cuda" if gpu else "cpu",
            should_stop=Interruption(switch),
        )
    except (DivergedError, UserError) as error:
        return str(error)
