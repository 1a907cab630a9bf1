"""What MLflow keeps of studies and single experiments, as tidy frames: the way in for all figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from gpm_tune.config import nearest
from gpm_tune.errors import UserError
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.storage.home import Home
from gpm_tune.study.tracking.views import BEST, BY_NFE
from gpm_tune.training.objectives import AT_NFE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARAM = "param."  # begins the columns that hold an experiment's values
COLUMNS = [
    "study",
    "stage",  # "search", "confirm", or "single" for an experiment that was trained alone
    "trial",  # NaN for a single experiment
    "run",  # MLflow's run id
    "name",
    "state",
    "reason",
    "model",
    "data",
    "data_fingerprint",
    "features",
    "samples",  # generated for each evaluation
    "seed",
    "steps",
    "version",
    "training_run",
    "started",
    "ended",
]
POINTS = ["study", "stage", "trial", "run", "step", "time", "metric", "nfe", "value"]
PAGE = 1000


def load_runs(home: Home, names: Sequence[str]) -> pd.DataFrame:
    """A row per training run of the studies, or single experiments, of these names.

    Columns: COLUMNS, and `param.PATH` for every value of the experiments. No rows where nothing ran yet.
    Raises UserError where nothing of a name was tracked.
    """
    rows = [_row(name, run) for name in names for run in _runs(home, name)]
    frame = pd.DataFrame(rows)
    missing = [column for column in COLUMNS if column not in frame]
    frame[missing] = None
    others = sorted(str(column) for column in frame if column not in COLUMNS)
    order = ["study", "stage", "trial", "started"]
    return frame[[*COLUMNS, *others]].sort_values(order, ignore_index=True)


def load_points(home: Home, runs: pd.DataFrame, metrics: Iterable[str] | None = None) -> pd.DataFrame:
    """A row per value that the runs measured: POINTS, in the order of steps.

    metrics: without NFE (`fid`, not `fid/nfe_8`); None for all. nfe: that of a metric at an NFE, NaN for the
    plain one, at the full NFE. A step that was measured again, after a lost process, is there once. What is
    derived from evaluations is none: the best so far, and curves by NFE.
    """
    client = home.mlflow()
    wanted = None if metrics is None else set(metrics)
    rows = [row for run in runs.itertuples() for row in _points(client, run, wanted)]
    frame = pd.DataFrame(rows, columns=POINTS)
    frame["nfe"] = frame["nfe"].astype("Float64")
    once = frame.drop_duplicates(["run", "metric", "nfe", "step"], keep="first")
    return once.sort_values(["study", "stage", "trial", "run", "metric", "nfe", "step"], ignore_index=True)


def load_bests(home: Home, runs: pd.DataFrame) -> dict[str, tuple[int, dict[str, float]]]:
    """The step of each run's best evaluation, and the values by which it was judged, where it has any."""
    client = home.mlflow()
    bests = {}
    for run in runs["run"]:
        metrics = client.get_run(run).data.metrics
        values = {name.removeprefix(BEST): value for name, value in metrics.items() if name.startswith(BEST)}
        if values:
            history = client.get_metric_history(run, BEST + next(iter(values)))
            bests[run] = (max(point.step for point in history), values)
    return bests


def refuse_mixed(frame: pd.DataFrame, what: str, keys: Sequence[str]) -> None:
    """Raise UserError where rows that are to share an axis differ in what their values depend on.

    frame: has these columns, and one called `label` that names a row's origin.
    """
    for key in keys:
        groups = frame.groupby(key, dropna=False, sort=False)["label"].unique()
        if len(groups) > 1:
            listed = "; ".join(f"{value}: {', '.join(map(str, labels))}" for value, labels in groups.items())
            raise UserError(
                f"{what}: these differ in {key} and cannot share an axis ({listed}). Draw them apart, "
                f"or measure them alike"
            )


def _runs(home: Home, name: str) -> Iterator[Run]:
    """The training runs of MLflow's experiment of this name; a study's parent runs are none."""
    if not home.is_tracked:
        raise UserError(f"'{name}': nothing has been tracked in {home.tracking_uri} yet")
    client = home.mlflow()
    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        known = [found.name for found in client.search_experiments() if found.name != "Default"]
        hint = nearest(name, known) if known else "nothing was tracked there yet"
        raise UserError(f"'{name}': no study or experiment of this name in {home.tracking_uri}; {hint}")
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=PAGE, page_token=token)
        yield from (run for run in page if not _is_parent(run))
        token = page.token
        if not token:
            return


def _is_parent(run: Run) -> bool:
    return "gpm.study" in run.data.tags and "gpm.trial" not in run.data.tags


def _row(name: str, run: Run) -> dict[str, Any]:
    tags, params = run.data.tags, run.data.params
    # MLflow keeps a null as Python writes it.
    values = {f"{PARAM}{p}": None if text == "None" else yaml.safe_load(text) for p, text in params.items()}
    study = tags.get("gpm.study", name)
    stage = "single"
    if "gpm.study" in tags:
        stage = "confirm" if study.endswith(CONFIRMATION) else "search"
    return {
        "study": study.removesuffix(CONFIRMATION),
        "stage": stage,
        "trial": int(tags["gpm.trial"]) if "gpm.trial" in tags else None,
        "run": run.info.run_id,
        "name": run.info.run_name,
        "state": tags.get("gpm.state", "running"),
        "reason": tags.get("gpm.reason"),
        "model": tags.get("gpm.model"),
        "data": tags.get("gpm.data"),
        "data_fingerprint": tags.get("gpm.data_fingerprint"),
        "features": tags.get("gpm.features"),
        "samples": values.get(f"{PARAM}evaluation.samples"),
        "seed": values.get(f"{PARAM}seed"),
        "steps": values.get(f"{PARAM}training.steps"),
        "version": tags.get("gpm.version"),
        "training_run": tags.get("gpm.training_run"),
        "started": _time(run.info.start_time),
        "ended": _time(run.info.end_time),
        **values,
    }


def _time(milliseconds: int | None) -> pd.Timestamp | None:
    return None if milliseconds is None else pd.Timestamp(milliseconds, unit="ms", tz="UTC")


def _points(client: MlflowClient, run: Any, wanted: set[str] | None) -> Iterator[tuple[Any, ...]]:
    origin = (run.study, run.stage, run.trial, run.run)
    for name in client.get_run(run.run).data.metrics:
        if name.startswith(BEST) or name.endswith(BY_NFE):
            continue
        match = AT_NFE.fullmatch(name)
        metric, nfe = (match["metric"], float(match["nfe"])) if match else (name, None)
        if wanted is None or metric in wanted:
            for point in client.get_metric_history(run.run, name):
                yield (*origin, point.step, _time(point.timestamp), metric, nfe, point.value)
