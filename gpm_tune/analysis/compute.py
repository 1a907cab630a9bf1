"""What quality costs: time, GPU-hours and energy of training until a metric is as good as wanted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gpm_tune.analysis.charts import Chart, Panel, Series
from gpm_tune.analysis.figures import MEASURE, look, metric_title, refuse_mixed
from gpm_tune.analysis.study_data import StudyData, read_data
from gpm_tune.analysis.study_figures import in_hours, spreads
from gpm_tune.analysis.study_frames import ORIGIN, SECONDS_PER_HOUR, origin_of
from gpm_tune.analysis.subjects import model_title
from gpm_tune.errors import UserError
from gpm_tune.metrics import MODES
from gpm_tune.study.storage.home import Home

TARGETS = 4  # that are chosen where none is given
ENERGY = "system/energy"
COSTS = ["seconds", "gpu_hours", "joules"]
RUN = ["label", "study", "trial", "run", "model", "state", "seed", "is_best"]
TRIAL = ["label", "trial"]  # tell rows of one trial from others
JOULES_PER_KILOWATT_HOUR = 3.6e6

_log = logging.getLogger("gpm_tune")


def progress(home: Home, names: Sequence[str], metric: str) -> pd.DataFrame:
    """The metric at every evaluation of the studies' trials, with what training had cost by then.

    best_value: the best so far. is_best: of the trial of each label that is best in the end; infeasible ones
    are left out. Costs are of training, evaluations left out; gpu_hours is NaN where a trial's GPUs are
    unknown, joules where no GPU told them. Raises UserError where studies cannot share an axis, or none has
    measured the metric.
    """
    studies = [read_data(home, name) for name in dict.fromkeys(names)]
    models = [data.record.experiment["model"]["name"] for data in studies]
    frames = []
    for data, model in zip(studies, models, strict=True):
        label = model_title(model) + (f" ({data.record.name})" if models.count(model) > 1 else "")
        frames.append(_of_study(data, metric).assign(model=model, label=label))
        for note in data.notes:
            _log.warning("study %s: %s", data.record.name, note)
    frame = pd.concat(frames, ignore_index=True)
    if frame.empty:
        raise UserError(f"no trial of {', '.join(names)} has measured '{metric}' yet; see --metric")
    refuse_mixed(
        frame, f"{metric} of {', '.join(names)}", ["data", "data_fingerprint", "features", "samples"]
    )
    ends = frame.groupby(TRIAL)["best_value"].last().groupby("label")
    best = set(ends.idxmin() if _is_min(metric) else ends.idxmax())
    frame["is_best"] = [trial in best for trial in zip(*(frame[key] for key in TRIAL), strict=True)]
    return frame[[*RUN, "step", *MEASURE, *COSTS, "value", "best_value"]]


def _of_study(data: StudyData, metric: str) -> pd.DataFrame:
    rows = [
        {
            **origin_of(data, trial),
            "step": found.step,
            "value": found.metrics[metric],
            "seconds": found.scalars["seconds"],
            "joules": found.scalars.get(ENERGY, float("nan")),
        }
        for trial in sorted(data.record.ranked(), key=lambda trial: trial.number)
        for found in data.evaluations[trial.number]
        if metric in found.metrics
    ]
    frame = pd.DataFrame(rows, columns=[*ORIGIN, "step", "value", "seconds", "joules"])
    frame = frame.astype({"value": float})  # also of no rows
    so_far = frame.groupby("trial")["value"]
    frame["best_value"] = so_far.cummin() if _is_min(metric) else so_far.cummax()
    gpu = float("nan") if data.gpu is None else data.gpu
    frame["gpu_hours"] = frame["seconds"] * gpu / SECONDS_PER_HOUR
    origin = {"data": str(data.record.experiment["data"]), "data_fingerprint": data.record.data_fingerprint}
    return frame.assign(**origin, **data.measure(metric))


def _is_min(metric: str) -> bool:
    return MODES.get(metric, "min") == "min"


def choose_targets(frame: pd.DataFrame) -> list[float]:
    """A few values between where the best trials begin and where the best of them ends."""
    best = frame[frame["is_best"]]
    values = best.groupby(TRIAL)["best_value"]
    first, last = values.first(), values.last()
    is_min = _is_min(frame["metric"].iloc[0])
    ends = (first.max(), last.min()) if is_min else (first.min(), last.max())
    spaced = np.geomspace(*ends, TARGETS) if min(ends) > 0 else np.linspace(*ends, TARGETS)
    # The last one rounded to the side on which it is reached.
    return list(dict.fromkeys([*(float(f"{value:.3g}") for value in spaced[:-1]), float(spaced[-1])]))


def costs_of(frame: pd.DataFrame, targets: Sequence[float]) -> pd.DataFrame:
    """A row per trial and target: what it had cost when the target was reached; NaN where it never was."""
    is_min = _is_min(frame["metric"].iloc[0])
    rows = []
    for target in targets:
        for _, run in frame.groupby(TRIAL, sort=False):
            reached = run[run["best_value"] <= target] if is_min else run[run["best_value"] >= target]
            at: Any = reached.iloc[0] if len(reached) else {}
            found = {column: run[column].iloc[0] for column in (*RUN, *MEASURE)}
            found |= {"target": target, "reached": len(reached) > 0, "best_value": run["best_value"].iloc[-1]}
            rows.append(found | {column: at.get(column, float("nan")) for column in ("step", *COSTS)})
    frame = pd.DataFrame(rows, columns=[*RUN, *MEASURE, "target", "reached", "best_value", "step", *COSTS])
    return frame.sort_values(["label", "is_best", "trial"], ascending=[True, False, True], ignore_index=True)


def say(costs: pd.DataFrame) -> list[str]:
    """A line per model and target, of its best trial."""
    lines = []
    for row in costs[costs["is_best"]].to_dict("records"):
        spent = f"not reached (its best: {row['best_value']:.4g})"
        if row["reached"]:
            spent = f"{row['seconds']:.1f} s of training, step {row['step']:.0f}"
            spent += f", {row['gpu_hours']:.3g} GPU-hours" if row["gpu_hours"] > 0 else ""
            spent += f", {row['joules'] / JOULES_PER_KILOWATT_HOUR:.3g} kWh" if row["joules"] > 0 else ""
        lines.append(
            f"{row['label']}, trial {row['trial']:.0f}: {row['metric']} {row['target']:.4g}: {spent}"
        )
    return lines


def compute_chart(frame: pd.DataFrame) -> Chart:
    """The best value so far against each cost."""
    title = metric_title(*frame.iloc[0][MEASURE])
    time, unit = in_hours(frame["seconds"] / SECONDS_PER_HOUR)
    costs = {f"training time ({unit})": time}
    if frame["gpu_hours"].max() > 0:
        costs["GPU-hours of training"] = frame["gpu_hours"]
    if frame["joules"].notna().any():
        costs["energy of the GPU (kWh)"] = frame["joules"] / JOULES_PER_KILOWATT_HOUR
    is_log = spreads(frame["best_value"])
    panels = [Panel(name, title, _lines(frame.assign(at=at)), y_log=is_log) for name, at in costs.items()]
    return Chart("compute", "What quality costs", f"{title} so far against cost.", frame, panels)


def _lines(frame: pd.DataFrame) -> list[Series]:
    """A line per trial: the best one of each label strong and last."""
    series = []
    labels = list(dict.fromkeys(frame["label"]))
    for (is_best, label, _), run in frame.groupby(["is_best", *TRIAL]):
        color, marker = look(labels.index(str(label)))
        looks: dict[str, Any] = {"width": 0.8, "opacity": 0.3}
        if is_best:
            looks = {"width": 2.5, "marker": marker, "label": f"{label}, trial {run['trial'].iloc[0]:.0f}"}
        series.append(Series(list(run["at"]), list(run["best_value"]), color, kind="steps", **looks))
    return series
