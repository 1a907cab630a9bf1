"""All that is known of a study, from Optuna's storage, MLflow and its folder; any of them may be missing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import optuna
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri
from pydantic import TypeAdapter, ValidationError

from gpm_tune import locations
from gpm_tune.analysis.figures import MEASURE, metric_title
from gpm_tune.analysis.loader import COLUMNS, PARAM, load_bests, load_points, load_runs, refuse_mixed
from gpm_tune.errors import UserError
from gpm_tune.files import is_plain
from gpm_tune.study.accounts.database import read_storage
from gpm_tune.study.accounts.records import (
    StudyRecord,
    TrialRecord,
    is_feasible,
    is_own,
    read_confirmation,
    read_study,
    study_names,
)
from gpm_tune.study.definition import space
from gpm_tune.study.definition.distributions import AnyDistribution
from gpm_tune.study.definition.specification import Study
from gpm_tune.study.running.manage import is_running
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment
from gpm_tune.uris import without_secrets

SPLIT = "validation"  # on which trials are measured while they train
CURVES = ["trial", "step", "value"]
SEARCH: TypeAdapter[dict[str, AnyDistribution]] = TypeAdapter(dict[str, AnyDistribution])

_T = TypeVar("_T")


@dataclass(frozen=True)
class StudyData:
    """A study, as far as it is known."""

    record: StudyRecord
    stage: StudyRecord | None  # of new seeds
    search: Mapping[str, AnyDistribution]
    curves: pd.DataFrame  # CURVES: the first objective at each evaluation
    ended: Mapping[int, datetime]  # when, of the trials that have
    running: bool
    yaml: str | None  # the resolved study file
    gpu: float | None  # GPUs that a trial occupies
    runs: pd.DataFrame  # MLflow's training runs, as `load_runs` gives them
    tags: Mapping[str, str]  # of the study's own run in MLflow
    picture: bytes | None  # samples of the best trial, as a PNG
    notes: list[str] = field(default_factory=list)  # what could not be had, and why

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

    def versions(self) -> list[str]:
        """Of the program, all that trained trials."""
        return sorted(str(version) for version in self.runs["version"].dropna().unique())


def read_data(home: Home, name: str) -> StudyData:
    """What is known of a study.

    Raises UserError where neither Optuna's storage nor MLflow knows it, or its trials read different data.
    """
    notes: list[str] = []
    runs = _attempt(lambda: load_runs(home, [name]), pd.DataFrame(columns=COLUMNS), notes)
    searched = runs[runs["stage"] == "search"].assign(label=runs["name"])
    refuse_mixed(searched, f"the trials of '{name}'", ["data_fingerprint"])
    known = name in study_names(home.optuna_uri)
    if not known and runs.empty:
        read_study(home.optuna_uri, name)  # says which names there are
    parent = _attempt(lambda: _parent(home, name), None, []) if home.is_tracked else None
    text = _study_file(home, name, parent)
    if known:
        record, search, curves, ended = _from_optuna(home, name, notes)
    else:
        notes.append("Optuna's storage does not hold this study: what follows is from MLflow alone.")
        record, search, curves, ended = _from_mlflow(home, name, runs, text)
    if text is None:
        notes.append("The study's file study.yaml is gone, or damaged: GPU-hours per trial are not known.")
    return StudyData(
        record,
        read_confirmation(home.optuna_uri, name) if known else None,
        search,
        curves,
        ended,
        is_running(home, name),
        text,
        None if text is None else float(yaml.safe_load(text).get("resources", {}).get("gpu", 0.0)),
        runs,
        {} if parent is None else parent.data.tags,
        _picture(home, record, runs),
        notes,
    )


def _attempt(call: Callable[[], _T], otherwise: _T, notes: list[str]) -> _T:
    """What MLflow gives, or, with a note, something else where it has nothing or does not answer."""
    try:
        return call()
    except (UserError, MlflowException) as error:
        notes.append(f"MLflow: {without_secrets(str(error))}.")
        return otherwise


def _parent(home: Home, name: str) -> Any:
    """The study's own run in MLflow, or None."""
    client = home.mlflow()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    of_study = f"tags.`gpm.study` = '{name}'"
    found = client.search_runs([experiment.experiment_id], of_study, order_by=["attributes.start_time ASC"])
    return next((run for run in found if "gpm.trial" not in run.data.tags), None)


def _study_file(home: Home, name: str, parent: Any) -> str | None:
    file = home.study(name) / "study.yaml"
    with suppress(OSError, ValueError, yaml.YAMLError):
        if is_plain(file, home.study(name)):
            return _whole(file.read_bytes())
    content = None if parent is None else _artifact(home, parent.info.run_id, "study.yaml")
    with suppress(ValueError, yaml.YAMLError):
        return None if content is None else _whole(content)
    return None


def _whole(content: bytes) -> str:
    """The text of a study's file. Raises ValueError, or YAMLError, where it is damaged."""
    text = content.decode()
    tree = yaml.safe_load(text)
    if not isinstance(tree, dict) or not isinstance(tree.get("resources", {}), dict):
        raise ValueError("it is no study's file")
    return text


def _artifact(home: Home, run: str, path: str) -> bytes | None:
    """A file of a run in MLflow, or None where it is gone."""
    client = home.mlflow()
    with tempfile.TemporaryDirectory() as folder:
        try:
            uri = client.get_run(run).info.artifact_uri
            if is_local_uri(uri):
                place = Path(local_file_uri_to_path(uri))
                inside = home.root if place.is_relative_to(home.root) else place
                return (place / path).read_bytes() if is_plain(place / path, inside) else None
            return Path(client.download_artifacts(run, path, folder)).read_bytes()
        except (MlflowException, OSError):
            return None


def _from_optuna(
    home: Home, name: str, notes: list[str]
) -> tuple[StudyRecord, Mapping[str, AnyDistribution], pd.DataFrame, dict[int, datetime]]:
    record = read_study(home.optuna_uri, name)
    storage = read_storage(home.optuna_uri)
    assert storage is not None, "the study was read from it"
    stored = optuna.load_study(study_name=name, storage=storage)
    trials = [trial for trial in stored.get_trials(deepcopy=False) if is_own(trial)]
    rows = [(trial.number, step, value) for trial in trials for step, value in _evaluations(trial)]
    ended = {trial.number: trial.datetime_complete for trial in trials if trial.datetime_complete}
    try:
        search = SEARCH.validate_python(json.loads(stored.user_attrs["identity"])["search"])
    except ValidationError:
        notes.append("The search space was written by another version: it is not drawn.")
        search = {}
    return record, search, pd.DataFrame(rows, columns=CURVES), ended


def _is_readable(location: str, home: Home) -> bool:
    """Whether it is a file in a bucket, or a plain one in the home or its storage."""
    if locations.is_bucket(location):
        return locations.exists(location)
    return any(is_plain(Path(location), Path(place)) for place in (home.root, home.storage) if place)


def _evaluations(trial: optuna.trial.FrozenTrial) -> list[tuple[int, float]]:
    """Steps and values of the first objective, as the trial manager keeps them."""
    prefix = "scores:"  # with several objectives
    attributes = trial.user_attrs.items()
    several = {int(key.removeprefix(prefix)): v[0] for key, v in attributes if key.startswith(prefix)}
    return sorted((trial.intermediate_values | several).items())


def _from_mlflow(
    home: Home, name: str, runs: pd.DataFrame, text: str | None
) -> tuple[StudyRecord, Mapping[str, AnyDistribution], pd.DataFrame, dict[int, datetime]]:
    """The same from what was tracked. Raises UserError where the study's file is not among it."""
    try:
        study = Study.model_validate(yaml.safe_load(text or "{}"))
    except ValidationError:
        raise UserError(
            f"study '{name}' is not in {home.optuna_uri}, and MLflow has no study.yaml of this version "
            "for it: its objectives are unknown"
        ) from None
    searched = runs[runs["stage"] == "search"]
    points = load_points(home, searched)
    at_nfe = points["nfe"].notna()
    points.loc[at_nfe, "metric"] += "/nfe_" + points.loc[at_nfe, "nfe"].astype(int).astype(str)
    rows: list[Any] = searched.to_dict("records")
    bests = load_bests(home, searched)
    trials = [
        _tracked_trial(study, run, points[points["run"] == run["run"]], bests.get(run["run"])) for run in rows
    ]
    curves = points[points["metric"] == study.objective.metric][CURVES].reset_index(drop=True)
    record = StudyRecord(
        name,
        "",
        study.goals,
        study.experiment.features,
        study.base,
        list(study.search),
        0.0,
        0.0,
        trials,
        study.constraints,
        data_fingerprint=next(iter(searched["data_fingerprint"].dropna()), None),
    )
    of_ended = searched.dropna(subset="ended")
    ended = dict(zip(of_ended["trial"].astype(int), of_ended["ended"], strict=True))
    return record, study.search, curves, ended


def _tracked_trial(
    study: Study, run: Mapping[str, Any], points: pd.DataFrame, best: tuple[int, dict[str, float]] | None
) -> TrialRecord:
    """A trial as MLflow has it. best: step and values by which it is judged."""
    evaluations: dict[int, dict[str, float]] = {}
    for step, metric, value in zip(points["step"], points["metric"], points["value"], strict=True):
        evaluations.setdefault(step, {})[metric] = value
    best_step, judged = best or (None, {})
    metrics = evaluations.get(best_step or 0, {}) | judged
    bounds = [bound for bound in study.constraints if bound.metric in metrics]
    values = {path: run.get(f"{PARAM}{path}") for path in study.search}
    return TrialRecord(
        number=int(run["trial"]),
        state=run["state"],
        values={path: value for path, value in values.items() if _is_known(value)},
        scores=[judged[goal.metric] for goal in study.goals] if judged else None,
        metrics=metrics,
        best_step=best_step,
        feasible=run["state"] != "infeasible" and is_feasible(bounds, metrics),
        step=max(evaluations, default=0),
        seconds=max((found.get("seconds", 0.0) for found in evaluations.values()), default=0.0),
        reason=run["reason"],
        forked_from=None,
        confirms=None,
        run=run["training_run"],
    )


def _is_known(value: Any) -> bool:
    return isinstance(value, list | dict) or bool(pd.notna(value))


def _picture(home: Home, record: StudyRecord, runs: pd.DataFrame) -> bytes | None:
    """Samples of the best trial: from its training run, else from MLflow."""
    best = next(iter(record.ranked()), None)
    if best is None:
        return None
    if best.run is not None and best.best_step is not None:
        with suppress(ValidationError):  # of another version
            experiment = Experiment.model_validate(space.put(record.experiment, best.values))
            judge = experiment.judge(record.objective)
            file = home.runs.named(best.run).picture(best.best_step, judge)
            if _is_readable(file, home):
                return locations.read(file)
    of_best = runs[(runs["stage"] == "search") & (runs["trial"] == best.number)]["run"]
    path = f"samples/step_{best.best_step:07d}.png"
    found = (_artifact(home, run, path) for run in of_best)
    return next((content for content in found if content), None)
