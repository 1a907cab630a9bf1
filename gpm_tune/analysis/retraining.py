"""Training again: checkpoints keep the end of a run, figures of training time show the whole of it.

A training run is a pure function of its experiment and seed, so what it was at an earlier step is had by
training up to there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.errors import UserError
from gpm_tune.interrupts import interruptible
from gpm_tune.study.accounts.runs import find_teacher
from gpm_tune.study.definition.specification import load_experiment, open_file
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.loop import Asker, train_teacher
from gpm_tune.training.run import EvaluationRecord
from gpm_tune.training.saved import SavedModel

SAID_EVERY = 20.0  # seconds between lines on progress
STEPS_BETWEEN = 50  # looks at the clock


@dataclass(frozen=True)
class Origin:
    """What a person named: an experiment's file, or a trained model."""

    name: str
    experiment: Experiment
    saved: SavedModel | None  # None for a file


def find_origin(home: Home, word: str, overrides: list[str]) -> Origin:
    """The experiment of EXPERIMENT.yaml or STUDY.yaml, or of a run, as `find_subjects` finds it.

    overrides: KEY=VALUE, of a file. Raises UserError where there is no such experiment.
    """
    if Path(word).suffix in (".yaml", ".yml"):
        document = open_file(Path(word))
        for spec in overrides:
            document.set(spec)
        return Origin(word, load_experiment(document), None)
    if overrides:
        raise UserError(
            f"--set {overrides[0]}: {word} is a run, whose experiment is what it is; export it with "
            "`gpm-tune best STUDY --export FILE.yaml` and give the file"
        )
    (subject,) = find_subjects(home, [word])
    return Origin(subject.origin, subject.experiment, subject.saved)


def start(experiment: Experiment, home: Home, device: str) -> Trainer:
    """A trainer at step 0; its teacher, where it is given by an experiment, is trained first.

    Raises UserError where data or teacher cannot be had, DivergedError where the teacher diverges,
    KeyboardInterrupt after a signal that asks to stop, once the teacher's state is kept.
    """
    experiment = find_teacher(experiment, home)
    with interruptible() as interrupted:
        asker = Asker("figures", "a figure", should_stop=interrupted, on_teacher=_say_taught)
        teacher = train_teacher(experiment, home.open_runs(), asker, device)
        if interrupted():
            raise KeyboardInterrupt
    return Trainer(experiment, device=device, cache=home.cache, teacher=teacher)


def _say_taught(teacher: Experiment, record: EvaluationRecord) -> None:
    _say(f"teacher: step {record.step:,} of {teacher.training.steps:,}")


def train_to(
    trainer: Trainer, step: int, total: int, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Train up to a step out of so many, without an evaluation, and tell on stderr how far it is.

    Raises DivergedError where losses are no longer finite.
    """
    said = time.monotonic()
    while trainer.step < step and not should_stop():
        trainer.train_until(min(step, trainer.step + STEPS_BETWEEN), should_stop)
        if trainer.step == step or time.monotonic() - said > SAID_EVERY:
            said = time.monotonic()
            _say(f"training: step {trainer.step:,} of {total:,}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
