"""Teachers that are given by an experiment: trained once, and shared by all that ask for the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from gpm_tune.training import checkpoint
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.resuming import resume
from gpm_tune.training.saved import note_of_other_data
from gpm_tune.training.teacher import is_trained, teacher_folder
from gpm_tune.training.trainer import Evaluation, Trainer

_log = logging.getLogger("gpm_tune")


def train_teacher(
    teacher: Experiment,
    cache: Path,
    device: torch.device | str,
    *,
    on_evaluation: Callable[[Evaluation], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train a teacher to its end, from its last checkpoint if it has one; at once if it is trained.

    Processes that want the same teacher wait for each other. Returns False if asked to stop before.
    Raises DivergedError where numbers stop being finite.
    """
    folder = teacher_folder(teacher, cache)
    note = note_of_other_data(folder, teacher.data)
    if note:
        _log.warning("teacher: %s", note)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if is_trained(teacher, cache):
            return True
        trainer = Trainer(teacher, device=device, cache=cache)
        resume(trainer, checkpoint.newest_first(folder))
        while not trainer.done:
            evaluation = trainer.run_interval(should_stop)
            place = checkpoint.next_folder(folder, trainer.step)
            trainer.save(place)
            if evaluation is None:
                return False
            on_evaluation(evaluation)
            checkpoint.drop_old(checkpoint.up_to(place))
    return True
