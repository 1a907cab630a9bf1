"""From what a person calls a trained model to its checkpoint, its run, and its name in a figure."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpm_tune.errors import UserError
from gpm_tune.study.home import Home
from gpm_tune.study.records import StudyRecord, TrialRecord, read_study, study_names
from gpm_tune.study.results import best_trial
from gpm_tune.study.runs import RUN_ID, checkpoint_of
from gpm_tune.training import Experiment
from gpm_tune.training.saved import read_experiment

MODEL_NAMES = {
    "edm": "EDM",
    "gan": "GAN",
    "score_gan": "Score GAN",
    "discr_flow": "Discriminator Flow",
    "kernel_flow": "Kernel flow",
}

_log = logging.getLogger("gpm_tune")


@dataclass(frozen=True)
class Subject:
    """A trained model that a figure shows."""

    label: str  # its name in the figure, unlike any other's
    origin: str  # what the person called it: a study and its trial, a run id, or a folder
    folder: Path  # its checkpoint
    experiment: Experiment

    @property
    def model(self) -> str:
        """The model's name in configurations."""
        return self.experiment.model.name


def find_subjects(home: Home, words: Sequence[str]) -> list[Subject]:
    """The models of these words: STUDY (its best trial), STUDY/TRIAL, an MLflow run id, or a checkpoint.

    LABEL=WORD gives a model its name in the figure; else it is the kind of model, and where several are of
    a kind, its origin too. One that cannot be had, as its checkpoint is gone, is left out with a warning.
    Raises UserError where that leaves none.
    """
    found, problems = [], []
    for word in words:
        try:
            found.append(_find(home, word))
        except UserError as error:
            problems.append(str(error))
    if not found:
        raise UserError("\n".join(problems) or "no run was given: name a study, a run id, or a checkpoint")
    for problem in problems:
        _log.warning("left out: %s", problem)
    return _distinguish(found)


def _find(home: Home, word: str) -> Subject:
    label, given, rest = word.partition("=")
    reference = rest if given else word
    origin, folder = _locate(home, reference)
    experiment = read_experiment(folder)
    return Subject(label if given else "", origin, folder, experiment)


def _locate(home: Home, reference: str) -> tuple[str, Path]:
    """What to call it, and its checkpoint."""
    if RUN_ID.match(reference) or Path(reference).is_dir():
        return reference, checkpoint_of(reference, home)
    name, _, number = reference.partition("/")
    if name not in study_names(home.optuna_uri):
        checkpoint_of(reference, home)  # says what is valid, unless it is a folder
    record = read_study(home.optuna_uri, name)
    trial = _trial(record, number) if number else best_trial(record)
    if trial.checkpoint is None or not (Path(trial.checkpoint) / "checkpoint.json").is_file():
        where = trial.checkpoint or "none was written"
        raise UserError(f"trial {trial.number} of study '{name}' has no checkpoint any more ({where})")
    return f"{name}/{trial.number}", Path(trial.checkpoint)


def _trial(record: StudyRecord, number: str) -> TrialRecord:
    for trial in record.trials:
        if str(trial.number) == number:
            return trial
    raise UserError(f"study '{record.name}' has no trial {number}; it has {len(record.trials)} trials")


def _distinguish(subjects: list[Subject]) -> list[Subject]:
    """With a label for each that has none, unlike all others."""
    kinds = Counter(subject.model for subject in subjects if not subject.label)
    labelled = []
    for subject in subjects:
        name = MODEL_NAMES[subject.model]
        kind = name if kinds[subject.model] == 1 else f"{name} ({subject.origin})"
        labelled.append(replace(subject, label=subject.label or kind))
    counts = Counter(subject.label for subject in labelled)
    twice = [label for label, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"two models are called '{twice[0]}': give them labels, LABEL=RUN")
    return labelled
