"""From what a person calls a trained model to its checkpoint, its run, and its name in a figure."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from gpm_tune.errors import UnknownError, UserError
from gpm_tune.models import model_classes
from gpm_tune.plugins import name_of
from gpm_tune.study.accounts.runs import models_of
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment
from gpm_tune.training.description import build_empty
from gpm_tune.training.saved import SavedModel

Wanted = TypeVar("Wanted")
Found = TypeVar("Found")

_log = logging.getLogger("gpm_tune")


@dataclass(frozen=True)
class Subject:
    """A trained model that a figure shows."""

    label: str  # its name in the figure, unlike any other's
    origin: str  # what the person called it: a study and its trial, a run id, or a folder
    saved: SavedModel

    @property
    def experiment(self) -> Experiment:
        """As what it is sampled and measured."""
        return self.saved.experiment

    @property
    def model(self) -> str:
        """The model's name in configurations."""
        return self.experiment.model.name

    @property
    def kind(self) -> tuple[str, str]:
        """Model and data."""
        return self.model, self.experiment.data_label

    @property
    def sampling_steps(self) -> int:
        """N of the model's own grid; 0 for a generator."""
        model, _ = build_empty(self.experiment)
        return model.steps

    @property
    def full_nfe(self) -> int:
        """Of the model's own solver on its own grid."""
        model, _ = build_empty(self.experiment)
        return model.full_nfe()

    @property
    def any_grid(self) -> bool:
        """Whether the model knows every grid, so that each NFE may have its own."""
        model, _ = build_empty(self.experiment)
        return model.any_grid

    @property
    def unseeded(self) -> str:
        """What its replicates share: the experiment but for the seed."""
        return self.experiment.model_copy(update={"seed": 0}).model_dump_json()


def model_title(name: str) -> str:
    """What figures call the model of this name, which may be one of a plug-in that is not installed."""
    titles = {name_of(config): config.title for config in model_classes()}
    return titles.get(name) or name


def find_subjects(home: Home, words: Sequence[str], *, replicates: bool = False) -> list[Subject]:
    """The models of these words: STUDY (its best trial), STUDY/TRIAL, a training run, an MLflow run id.

    STUDY/* stands for all of a study's trials that have a checkpoint; STUDY.confirm is its stage of new
    seeds. LABEL=WORD gives a model its name in the figure; else it is the kind of model, and where several
    are of a kind, and of the same data, its origin too. replicates: models whose experiments differ in
    nothing but their seed share a label. One that cannot be had, as its checkpoint is gone, is left out
    with a warning. Raises UserError where that leaves none.
    """
    if not words:
        raise UserError("no run was given: name a study, a training run, or a run id of MLflow")
    found = all_that_can_be_had(words, lambda word: _find(home, word))
    return _distinguish([subject for subjects in found for subject in subjects], replicates)


def all_that_can_be_had(wanted: Iterable[Wanted], find: Callable[[Wanted], Found]) -> list[Found]:
    """What is found for each; those for which UserError is raised are left out with a warning.

    Raises UserError where that leaves none, or a name is unknown.
    """
    found, problems = [], []
    for each in wanted:
        try:
            found.append(find(each))
        except UnknownError:
            raise
        except UserError as error:
            problems.append(str(error))
    if not found:
        raise UserError("\n".join(problems))
    for problem in problems:
        _log.warning("left out: %s", problem)
    return found


def _find(home: Home, word: str) -> list[Subject]:
    before, given, after = word.partition("=")
    label, reference = (before, after) if given else ("", word)
    return [Subject(label, origin, saved) for origin, saved in models_of(reference, home).items()]


def _distinguish(subjects: list[Subject], replicates: bool) -> list[Subject]:
    """With a label for each that has none, unlike those of all others on the same data."""
    groups: dict[str, list[Subject]] = {}
    for index, subject in enumerate(subjects):
        key = f"{subject.label} {subject.unseeded}" if replicates else str(index)
        groups.setdefault(key, []).append(subject)
    kinds = Counter(group[0].kind for group in groups.values() if not group[0].label)
    labels = {key: group[0].label or _name(group[0], kinds) for key, group in groups.items()}
    uses = Counter((labels[key], group[0].experiment.data_label) for key, group in groups.items())
    for (label, _), count in uses.items():
        if count > 1:
            why = ", which differ in more than their seed" if replicates else ""
            raise UserError(f"'{label}' names {count} models{why}: give each a label of its own, LABEL=RUN")
    return [replace(subject, label=labels[key]) for key, group in groups.items() for subject in group]


def _name(subject: Subject, kinds: Counter[tuple[str, str]]) -> str:
    name = model_title(subject.model)
    return name if kinds[subject.kind] == 1 else f"{name} ({subject.origin})"
