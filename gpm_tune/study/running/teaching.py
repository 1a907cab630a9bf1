"""The stage before the trials: the teacher that they share is trained once, on the cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from gpm_tune.errors import DivergedError, ScarcityError, UserError
from gpm_tune.interrupts import heed_termination
from gpm_tune.patience import scarcity
from gpm_tune.plugins import named
from gpm_tune.study.definition.specification import Study
from gpm_tune.study.running.trainable import Interruption
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import fetch_teacher, share_teacher
from gpm_tune.training import Experiment, checkpoint
from gpm_tune.training.objectives import shown
from gpm_tune.training.pretraining import train_teacher
from gpm_tune.training.saved import note_of_other_data
from gpm_tune.training.teacher import teacher_folder

NODE_LOSSES = 10  # of a teacher's training: it goes on from its latest checkpoint
LOOK_EVERY = 0.5  # seconds between looks at the task: signals are handled in between


def teach(study: Study, home: Home, switch: Any, console: Console) -> bool:
    """Train the study's teacher, if it has one to be trained. Returns False if interrupted.

    Raises DivergedError where the teacher's numbers stop being finite, ScarcityError on a full disk.
    """
    teacher = study.experiment.teacher
    if teacher is None:
        return True
    folder = teacher_folder(teacher, home.cache)
    console.print(
        f"teacher: {teacher.model.name} on {teacher.data_label}, {teacher.training.steps} steps, in {folder}",
        highlight=False,
    )
    note = note_of_other_data(folder, teacher.data)
    if note:
        console.print(f"teacher: {note}", highlight=False)
    resources = study.resources
    place = _train.options(**resources.for_task, max_retries=NODE_LOSSES)
    task = place.remote(
        teacher.model_dump(mode="json"),
        str(home.cache),
        home.storage,
        resources.cpu,
        bool(resources.gpu),
        switch,
    )
    while not ray.wait([task], timeout=LOOK_EVERY)[0]:
        pass
    outcome = ray.get(task)
    if isinstance(outcome, ScarcityError):
        raise outcome
    if isinstance(outcome, str):
        raise DivergedError(f"the teacher: {outcome}")
    if home.storage:
        fetch_teacher(teacher, home.cache, home.storage)
    latest = checkpoint.latest(folder) if outcome else None
    if latest:
        best = checkpoint.read_record(latest).best
        assert best is not None, "it was trained to its end"
        metric = teacher.default_objective.metric
        console.print(f"teacher: best {metric} {shown(best.metrics[metric])}", highlight=False)
    return bool(outcome)


@ray.remote  # type: ignore[untyped-decorator]
def _train(
    plain: dict[str, Any], home_cache: str, storage: str | None, threads: int, gpu: bool, switch: Any
) -> bool | str | ScarcityError:
    """Train the teacher. Returns False if interrupted, or the reason why it cannot be trained.

    An error that is raised here would reach the driver as one of Ray's.
    """
    torch.set_num_threads(threads)
    is_interrupted, is_asked_to_end = Interruption(switch), heed_termination()
    teacher, cache = Experiment.model_validate(plain), Path(home_cache)
    if storage:
        fetch_teacher(teacher, cache, storage)  # another node may have begun
    try:
        with named():
            trained = train_teacher(
                teacher,
                cache,
                "cuda" if gpu else "cpu",
                on_evaluation=lambda _: share_teacher(teacher, cache, storage) if storage else None,
                should_stop=lambda: is_interrupted() or is_asked_to_end(),
            )
        if storage:
            share_teacher(teacher, cache, storage)
        if not trained and not is_interrupted():
            os._exit(1)  # Ray starts it again, elsewhere if the node has gone
        return trained
    except (DivergedError, UserError) as error:
        return str(error)
    except OSError as error:
        if scarce := scarcity(error, teacher_folder(teacher, cache)):
            return ScarcityError(f"the teacher: {scarce}")
        raise
