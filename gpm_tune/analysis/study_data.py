"""All that is known of a study: from Optuna's storage, its trials' training runs, and its own folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from pydantic import TypeAdapter, ValidationError

from gpm_tune import locations
from gpm_tune.analysis.figures import MEASURE, metric_title
from gpm_tune.errors import UserError, first_line
from gpm_tune.files import is_plain
from gpm_tune.study.accounts.database import read_storage
from gpm_tune.study.accounts.records import (
    StudyRecord,
    TrialRecord,
    is_own,
    read_confirmation,
    read_study,
    run_user,
)
from gpm_tune.study.accounts.trained import evaluations_of, seconds_of_others
from gpm_tune.study.definition.distributions import AnyDistribution
from gpm_tune.study.running.manage import is_running
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment
from gpm_tune.training.run import EvaluationRecord

SPLIT = "validation"  # on which trials are measured while they train
CURVES = ["trial", "step", "value"]
SEARCH: TypeAdapter[dict[str, AnyDistribution]] = TypeAdapter(dict[str, AnyDistribution])


@dataclass(frozen=True)
class StudyData:
    """A study, as far as it is known."""

    record: StudyRecord
    stage: StudyRecord | None  # of new seeds
    search: Mapping[str, AnyDistribution]
    curves: pd.DataFrame  # CURVES: the first objective at each evaluation, as Optuna knows it
    evaluations: Mapping[int, Sequence[EvaluationRecord]]  # of each trial, as its training run has them
    others: Mapping[int, float]  # seconds of each trial's training run that others have trained
    running: bool
    yaml: str | None  # the resolved study file
    gpu: float | None  # GPUs that a trial occupies
    picture: bytes | None  # samples of the best trial, as a PNG
    notes: Sequence[str]  # what could not be had, and why

    @cached_property
    def samples(self) -> int | None:
        """How many samples an evaluation generates; None where that cannot be told here."""
        try:
            return Experiment.model_validate(self.record.experiment).evaluated_samples
        except (ValidationError, UserError):  # of another version; a folder of pictures that is not here
            found: int | None = self.record.experiment["evaluation"].get("samples")
            return found

    @cached_property
    def best(self) -> TrialRecord | None:
        """The best trial; None while none has a result."""
        return next(iter(self.record.ranked()), None)

    def measure(self, metric: str) -> dict[str, Any]:
        """The columns MEASURE of a metric's values."""
        return dict(zip(MEASURE, (metric, self.record.features, self.samples, SPLIT), strict=True))

    def title(self, metric: str) -> str:
        """An axis's label, with all that the metric's values depend on."""
        if metric in ("nfe", "parameters"):
            return {"nfe": "NFE", "parameters": "trained parameters"}[metric]
        if self.samples is None:
            return f"{metric} ({self.record.features} features, an unknown number of samples, {SPLIT} split)"
        return metric_title(metric, self.record.features, self.samples, SPLIT)

    def versions(self) -> dict[str, int]:
        """The versions of the program that measured trials, and how many trials each did."""
        found = Counter(v for records in self.evaluations.values() for v in {r.version for r in records})
        return dict(sorted(found.items()))


def read_data(home: Home, name: str) -> StudyData:
    """What is known of a study. Raises UserError where Optuna's storage does not know it."""
    notes: list[str] = []
    record = read_study(home.optuna_uri, name)
    search, curves = _searched(home, name, notes)
    evaluations, others = _measured(home, record, curves, notes)
    text = _study_file(home, name)
    if text is None:
        notes.append("The study's file study.yaml is gone, or damaged: GPU-hours per trial are not known.")
    return StudyData(
        record,
        read_confirmation(home.optuna_uri, name),
        search,
        curves,
        evaluations,
        others,
        is_running(home, name),
        text,
        None if text is None else float(yaml.safe_load(text).get("resources", {}).get("gpu", 0.0)),
        _picture(home, record),
        notes,
    )


def _searched(home: Home, name: str, notes: list[str]) -> tuple[Mapping[str, AnyDistribution], pd.DataFrame]:
    """The search space, and the first objective at each evaluation."""
    storage = read_storage(home.optuna_uri)
    assert storage is not None, "the study was read from it"
    stored = optuna.load_study(study_name=name, storage=storage)
    trials = [trial for trial in stored.get_trials(deepcopy=False) if is_own(trial)]
    rows = [(trial.number, step, value) for trial in trials for step, value in _values(trial)]
    try:
        search = SEARCH.validate_python(json.loads(stored.user_attrs["identity"])["search"])
    except ValidationError:
        notes.append("The search space was written by another version: it is not drawn.")
        search = {}
    return search, pd.DataFrame(rows, columns=CURVES)


def _values(trial: optuna.trial.FrozenTrial) -> list[tuple[int, float]]:
    """Steps and values of the first objective, as the trial manager keeps them."""
    prefix = "scores:"  # with several objectives
    attributes = trial.user_attrs.items()
    several = {int(key.removeprefix(prefix)): v[0] for key, v in attributes if key.startswith(prefix)}
    return sorted((trial.intermediate_values | several).items())


def _measured(
    home: Home, record: StudyRecord, curves: pd.DataFrame, notes: list[str]
) -> tuple[dict[int, list[EvaluationRecord]], dict[int, float]]:
    """Each trial's evaluations, and the seconds that others have trained its run.

    A note says which trials' runs lack what Optuna knows of.
    """
    try:
        there = {name: home.runs.named(name) for name in home.runs.names()}
    except (OSError, UserError) as error:
        notes.append(f"The training runs in {home.runs.location} cannot be read: {first_line(error)}.")
        there = {}
    evaluations, others, lacking = {}, {}, []
    for trial in record.trials:
        found: list[EvaluationRecord] = []
        run = there.get(trial.run or "")
        if run is not None:
            with suppress(OSError, UserError, ValidationError):  # damaged; of another version
                found = evaluations_of(record, trial, record.experiment_of(trial), run)
                others[trial.number] = seconds_of_others(run, run_user(record.id), trial.seconds)
        evaluations[trial.number] = found
        if set(curves[curves["trial"] == trial.number]["step"]) - {each.step for each in found}:
            lacking.append(str(trial.number))
    if lacking:
        notes.append(
            f"The training runs of trials {', '.join(lacking)} are gone, or damaged: of these trials is "
            "shown what Optuna's storage has, and seconds that others trained may be counted."
        )
    return evaluations, others


def _study_file(home: Home, name: str) -> str | None:
    """The text of a study's file; None where it is gone, or damaged."""
    file = home.study(name) / "study.yaml"
    with suppress(OSError, ValueError, yaml.YAMLError):
        if is_plain(file, home.study(name)):
            text = file.read_bytes().decode()
            tree = yaml.safe_load(text)
            if isinstance(tree, dict) and isinstance(tree.get("resources", {}), dict):
                return text
    return None


def _picture(home: Home, record: StudyRecord) -> bytes | None:
    """Samples of the best trial."""
    best = next(iter(record.ranked()), None)
    if best is None or best.run is None or best.best_step is None:
        return None
    with suppress(OSError, UserError, ValidationError):  # the storage is away; of another version
        judge = record.experiment_of(best).judge(record.objective)
        file = home.runs.named(best.run).picture(best.best_step, judge)
        if _is_readable(file, home):
            return locations.read(file)
    return None


def _is_readable(location: str, home: Home) -> bool:
    """Whether it is a file in a bucket, or a plain one in the home or its storage."""
    if locations.is_bucket(location):
        return locations.exists(location)
    return any(is_plain(Path(location), Path(place)) for place in (home.root, home.storage) if place)
