"""Frames and report read Optuna's storage and training runs: MLflow may be gone, and runs may be damaged."""

from __future__ import annotations

import html
import json
import logging
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hand_made import EVERY

from gpm_tune.analysis import compute, study_frames
from gpm_tune.analysis.report import render
from gpm_tune.analysis.study_data import StudyData, read_data
from gpm_tune.study.running.publishing import StudyViews
from gpm_tune.study.storage.home import Home
from gpm_tune.study.tracking.views import trial_key

NO_SERVER = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def home(told: Home, tmp_path: Path) -> Home:
    """A copy of the home `told`, without MLflow's database; its server is down."""
    with (
        closing(sqlite3.connect(told.root / "optuna.db")) as source,
        closing(sqlite3.connect(tmp_path / "optuna.db")) as target,
    ):
        source.backup(target)  # with what is in the write-ahead log alone
    for folder in ("runs", "studies"):
        shutil.copytree(told.root / folder, tmp_path / folder)
    return Home(tmp_path, NO_SERVER)


def page_of(data: StudyData) -> str:
    return re.sub(r"\d+-\d+-\d+ \d+:\d+ UTC, by", "now, by", render(data))


def test_a_report_is_the_same_without_mlflow(told: Home, home: Home) -> None:
    assert page_of(read_data(home, "told")) == page_of(read_data(told, "told"))


def test_frames_have_the_evaluations_that_mlflow_is_shown(told: Home) -> None:
    data, views = read_data(told, "told"), StudyViews(told, "told", is_running=False)
    for trial in data.record.trials:
        view = views(trial_key(data.record, trial.number))
        assert view
        shown = [(point.step, point.value) for point in view.points if point.name == "fid"]
        found = [(each.step, each.metrics["fid"]) for each in data.evaluations[trial.number]]
        curve = data.curves[data.curves["trial"] == trial.number][["step", "value"]]
        assert shown == found == list(curve.itertuples(index=False, name=None))


def test_of_damaged_runs_is_shown_what_optuna_knows(
    told: Home, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    whole = read_data(told, "told")
    gone, damaged, untidy = (Path(home.runs.named(str(t.run)).location) for t in whole.record.trials[:3])
    shutil.rmtree(gone)
    shutil.rmtree(untidy)
    untidy.write_text("a file in place of the folder")
    min(damaged.glob("evaluations/*")).write_text("{")
    data = read_data(home, "told")
    (note,) = data.notes
    assert note.startswith("The training runs of trials 0, 1, 2 are gone, or damaged")
    for frame in ("trials", "learning_curves", "best_so_far", "budget"):
        assert getattr(study_frames, frame)(data).equals(getattr(study_frames, frame)(whole))
    assert note in html.unescape(render(data))
    with caplog.at_level(logging.WARNING):
        measured = compute.progress(home, ["told"], "fid")
    assert note in caplog.text
    assert measured.groupby("trial")["step"].apply(list).to_dict() == {
        1: [2 * EVERY, 3 * EVERY],
        3: [EVERY, 2 * EVERY],
        5: [EVERY, 2 * EVERY],
    }


def test_several_versions_are_named(home: Home) -> None:
    run = read_data(home, "told").record.trials[0].run
    for file in Path(home.runs.named(str(run)).location).glob("evaluations/*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "version": "9.9.9"}))
    text = render(read_data(home, "told"))
    assert "Several versions of the program trained these trials" in text
    assert "9.9.9 (1 trials)" in text
