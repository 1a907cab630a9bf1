"""One page of a study, complete in itself: it opens offline, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from gpm_tune.analysis import study_frames
from gpm_tune.analysis.charts import Chart, for_plotly
from gpm_tune.analysis.study_data import StudyData
from gpm_tune.analysis.study_figures import study_charts
from gpm_tune.study.tracking.provenance import PACKAGES
from gpm_tune.study.views.results import failures, lineage, shared, show_value, spent, states
from gpm_tune.version import __version__

HERE = Path(__file__).parent
MOST_ROWS = 2000  # of a table under a figure
REPEATED = {"study", "run", "reason"}  # the table of trials has them


def render(data: StudyData) -> str:
    """The page, as HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [get_plotlyjs(), (HERE / "report.js").read_text(encoding="utf-8")]
    record = data.record
    return environment.get_template("report.html").render(
        name=record.name,
        scripts=scripts,
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        facts=list(_facts(data)),
        notes=[*data.notes, *_say_versions(data)],
        best=_best(data),
        charts=[_chart(chart) for chart in study_charts(data)],
        trials=_trials(data),
        failures=[*failures(record), *(failures(data.stage) if data.stage else [])],
        lineage=lineage(record),
        shared=[*shared(record), *_say_others(data)],
        yaml=data.yaml,
    )


def _digest(script: str) -> str:
    """As a Content-Security-Policy names the script that alone may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _facts(data: StudyData) -> Iterable[tuple[str, str]]:
    record = data.record
    tags, trials = record.environment, record.trials
    yield "trials", states(record)
    yield "state", "still running" if data.running else "not running"
    yield "objectives", "; ".join(f"{goal.mode} {data.title(goal.metric)}" for goal in record.objectives)
    yield "model", record.experiment["model"]["name"]
    origin = [
        record.experiment["data"][key] for key in ("name", "root") if record.experiment["data"].get(key)
    ]
    yield "data", f"{' '.join(origin)}, fingerprint {record.data_fingerprint or 'unknown'}"
    yield "spent", spent(record)
    yield "gpm_tune", ", ".join(data.versions()) or "unknown"
    found = [
        f"{package} {tags[f'gpm.{package}']}" for package in ("python", *PACKAGES) if f"gpm.{package}" in tags
    ]
    yield "with", ", ".join(found) or "unknown"
    yield "machine", " ".join(tags[key] for key in ("gpm.gpu", "gpm.platform") if key in tags) or "unknown"
    yield "git commit", tags.get("gpm.git_commit", "unknown")
    if trials:
        yield "first trial began", _time(min(trial.started for trial in trials))
    if ended := [trial.ended for trial in trials if trial.ended]:
        yield "last trial ended", _time(max(ended))
    yield "this report", f"{_time(time.time() * 1000)}, by gpm_tune {__version__}"


def _time(milliseconds: float) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _say_versions(data: StudyData) -> Iterable[str]:
    versions = data.versions()
    if len(versions) > 1:
        listed = ", ".join(f"{version} ({count} trials)" for version, count in versions.items())
        yield f"Several versions of the program trained these trials: {listed}. Values may differ for it."


def _say_others(data: StudyData) -> Iterable[str]:
    """What of training runs this study did not train."""
    seconds: dict[str, float] = {}
    for trial in data.record.trials:
        if trial.run and data.others.get(trial.number, 0.0) > 0:
            seconds[trial.run] = max(data.others[trial.number], seconds.get(trial.run, 0.0))
    for run, count in seconds.items():
        yield f"{count:.1f} s of the training run {run} were trained for others, and are not counted"


def _best(data: StudyData) -> dict[str, Any] | None:
    """The best trial: what it is called, its values, what was measured, and its samples."""
    trial = data.best
    if trial is None:
        return None
    picture, measured = data.picture, trial.measured.as_text() if trial.measured else {}
    return {
        "number": trial.number,
        "state": trial.state,
        "step": trial.best_step,
        "scores": [
            (data.title(goal.metric), _cell(score))
            for goal, score in zip(data.record.objectives, trial.scores or (), strict=True)
        ],
        "searched": [(path, _cell(value)) for path, value in trial.values.items()],
        "metrics": [(name, _cell(value)) for name, value in sorted(measured.items())],
        "training_run": trial.run,
        "picture": None if picture is None else base64.b64encode(picture).decode(),
    }


def _trials(data: StudyData) -> dict[str, Any]:
    """The table of trials, best first."""
    frame = study_frames.trials(data)
    order = {trial.number: rank for rank, trial in enumerate(data.record.ranked())}
    ranks = frame["trial"].map(lambda number: order.get(number, len(order) + number))
    last = ["reason", "run"]
    columns = [column for column in frame if column not in ("study", *last)]
    return _table(frame.iloc[ranks.argsort()][[*columns, *last]])


def _chart(chart: Chart) -> dict[str, Any]:
    """A chart for the page; its table has once, above it, what all its rows share."""
    frame = chart.frame
    own = frame[[column for column in frame if column not in REPEATED]]
    shared = [
        c for c in ("metric", "features", "samples", "split", "seed") if c in own and own[c].nunique() == 1
    ]
    return {
        "key": chart.key,
        "title": chart.title,
        "alt": chart.alt,
        "note": chart.note,
        "panels": [for_plotly(panel) for panel in chart.panels],
        "shared": ", ".join(f"{column} {own[column].dropna().iloc[0]}" for column in shared),
        "table": _table(own.drop(columns=[*shared, *(c for c in own if own[c].isna().all())])),
    }


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    rows = [[_cell(value) for value in row] for row in frame.head(MOST_ROWS).itertuples(index=False)]
    return {"columns": list(frame), "rows": rows, "left_out": max(0, len(frame) - MOST_ROWS)}


def _cell(value: Any) -> str:
    if value is None or (not isinstance(value, list | dict) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.5g}"
    return show_value(value)
