"""What a study has learnt and cost: frames against what its trials measured, and both drawings of them."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from examples import STUDY, study_of
from hand_made import (
    EVERY,
    JOULES_A_STEP,
    SECONDS_A_STEP,
    STORIES,
    Story,
    digits_study,
    drive,
    evaluation,
    open_ledger,
)

from gpm_tune.analysis import compute, study_frames
from gpm_tune.analysis.charts import Panel, Series, draw, for_plotly
from gpm_tune.analysis.study_data import StudyData, read_data
from gpm_tune.analysis.study_figures import study_charts
from gpm_tune.errors import UserError
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.study.storage.home import Home

SCRIPTS = Path(__file__).parents[2] / "analysis"
MEASURED = {number: list(values) for number, (values, _) in enumerate(STORIES)}
MEASURED[5] = MEASURED[5][:2]  # the scheduler stops it there


@pytest.fixture(scope="module")
def data(told: Home) -> StudyData:
    return read_data(told, "told")


def test_the_learning_curves_are_what_was_measured(data: StudyData) -> None:
    frame = study_frames.learning_curves(data)
    curves = {n: rows["value"].tolist() for n, rows in frame.groupby("trial")}
    assert curves == {n: values for n, values in MEASURED.items() if values}
    assert frame["step"].isin([EVERY, 2 * EVERY, 3 * EVERY]).all()
    assert frame["run"].nunique() == len(curves), "each trial has its training run"
    assert set(frame["features"]) == {"small"}
    assert set(frame["samples"]) == {20}


def test_best_so_far_is_the_running_best_and_costs_add_up(data: StudyData) -> None:
    frame = study_frames.best_so_far(data)
    best = [min(MEASURED[n]) if MEASURED[n] else math.nan for n in frame["trial"]]
    np.testing.assert_allclose(frame["value"], best)
    np.testing.assert_allclose(frame["best"], np.fmin.accumulate(best))
    seconds = [len(MEASURED[n]) * EVERY * SECONDS_A_STEP for n in frame["trial"]]
    np.testing.assert_allclose(frame["hours"] * 3600, np.cumsum(seconds))
    np.testing.assert_allclose(frame["gpu_hours"], frame["hours"] * 0.5)
    assert frame["trials"].tolist() == list(range(1, len(STORIES) + 1))


def test_the_budget_is_that_of_all_trials(data: StudyData) -> None:
    frame = study_frames.budget(data).set_index("state")
    assert frame["trials"].to_dict() == {"complete": 2, "fail": 2, "pruned": 2}
    evaluations = sum(map(len, MEASURED.values()))
    assert frame["seconds"].sum() == pytest.approx(evaluations * EVERY * SECONDS_A_STEP)


def test_a_forks_time_is_counted_once(data: StudyData) -> None:
    first, *others = data.record.trials
    fork = replace(first, forked_from="trial 1, step 9")  # 3 of its 12 steps are its own
    forked = replace(data, record=replace(data.record, trials=[fork, *others]))
    before, after = (study_frames.trials(d)["seconds"].iloc[0] for d in (data, forked))
    assert after == pytest.approx(before / 4)


def test_nothing_is_cheaper_and_better_than_the_front(data: StudyData) -> None:
    frame = study_frames.value_by_nfe(data)
    for _, row in frame.iterrows():
        no_worse = (frame["nfe"] <= row["nfe"]) & (frame["value"] <= row["value"])
        better = no_worse & ((frame["nfe"] < row["nfe"]) | (frame["value"] < row["value"]))
        assert row["front"] == (not better.any())
    assert frame["front"].any()


def test_what_is_out_of_bounds_wins_nowhere(tmp_path: Path) -> None:
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    bounds = [{"metric": "seconds", "max": 2.5 * EVERY * SECONDS_A_STEP}]
    stories: list[Story] = [([90.0, 60.0, 20.0], None), ([80.0, 40.0, 45.0], None), ([50.0], "loss was nan")]
    drive(home, digits_study(3, constraints=bounds, scheduler={"name": "none"}), stories)
    data = read_data(home, "told")
    assert [(t.number, t.value, t.best_step) for t in data.record.ranked()] == [(1, 40.0, 8), (2, 50.0, 4)]
    assert [trial.state for trial in data.record.trials] == ["infeasible", "complete", "fail"]
    assert set(study_frames.value_by_nfe(data)["trial"]) == {1, 2}
    frame = compute.progress(home, ["told"], "fid")
    assert set(frame["trial"]) == {1, 2}
    assert set(frame[frame["is_best"]]["trial"]) == {1}


def test_places_in_parallel_coordinates_run_from_low_to_high(data: StudyData) -> None:
    frame = study_frames.parallel(data)
    assert frame["position"].between(0, 1).all()
    eta = frame[frame["parameter"] == "model.eta"]
    np.testing.assert_allclose(eta["position"], np.log(eta["at"].astype(float)) / np.log(4.0), atol=1e-12)
    fid = frame[frame["parameter"] == "fid"].set_index("at")["position"]
    assert fid.idxmin() == 30.0
    assert fid.idxmax() == 400.0


def told_points(tmp_path: Path, trials: int, value: str = "eta", **changes: object) -> StudyData:
    """A study of points without training runs, whose trials' values follow from what was searched."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    study: StudyConfig = study_of(budget={"trials": trials}, sampler={"name": "random"}, **changes)
    manager = open_ledger(home, study)
    for _ in range(trials):
        spec = manager.next()
        assert spec is not None
        found = math.log(spec.values["model.eta"]) if value == "eta" else 1.0
        manager.report(spec.number, EVERY, evaluation(EVERY, found, 4, "sliced_wasserstein"))
        manager.complete(spec.number)
    return read_data(home, study.name)


def test_importance_finds_the_value_that_matters(tmp_path: Path) -> None:
    data = told_points(tmp_path, 24)
    frame = study_frames.importance(data).set_index("parameter")
    assert frame["importance"].idxmax() == "model.eta"
    assert frame.loc["model.eta", "importance"] > 0.8
    conditional = sum("training.optimizer.lr" in trial.values for trial in data.record.trials)
    assert 0 < conditional < 24
    assert frame["trials"].to_dict() == dict.fromkeys(STUDY["search"], 24) | {
        "training.optimizer.lr": conditional
    }


@pytest.mark.parametrize(("trials", "value"), [(3, "eta"), (6, "constant")])
def test_importance_says_where_it_cannot_be_known(tmp_path: Path, trials: int, value: str) -> None:
    data = told_points(tmp_path, trials, value)
    assert study_frames.importance(data)["importance"].isna().all()
    chart = next(chart for chart in study_charts(data) if chart.key == "importance")
    assert not chart.panels
    assert "Not known of" in chart.note
    assert any("training runs of trials 0, 1, 2" in note for note in data.notes), "nothing was trained"


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    goals = [{"metric": "sliced_wasserstein"}, {"metric": "nfe"}]
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    manager = open_ledger(home, study_of(objectives=goals, budget={"trials": 3}))
    for value, nfe in [(1.0, 8), (2.0, 4), (3.0, 6)]:
        spec = manager.next()
        assert spec is not None
        number = spec.number
        for step, worse in [(4, 1.0), (8, 0.0)]:
            manager.report(number, step, evaluation(step, value + worse, nfe, "sliced_wasserstein"))
        manager.complete(number)
    data = read_data(home, "small")
    frame = study_frames.objectives(data)
    assert frame[frame["front"]]["trial"].tolist() == [0, 1]
    assert study_frames.learning_curves(data)["value"].tolist() == [2.0, 1.0, 3.0, 2.0, 4.0, 3.0]
    assert "pareto" in [chart.key for chart in study_charts(data)]


def test_both_drawings_show_the_same_values(data: StudyData) -> None:
    for chart in study_charts(data):
        assert chart.panels, chart.key
        axes = draw(chart).axes
        assert len(axes) == len(chart.panels)
        for panel, drawn in zip(chart.panels, axes, strict=True):
            traces = for_plotly(panel)["data"]
            assert [trace["y"] for trace in traces] == [
                [None if pd.isna(value) else value for value in series.y] for series in panel.series
            ]
            lines = [series for series in panel.series if series.kind != "bars"]
            assert len(drawn.lines) == len(lines)
            if not any(isinstance(value, str) for series in lines for value in (*series.x, *series.y)):
                for line, series in zip(drawn.lines, lines, strict=True):
                    np.testing.assert_allclose(line.get_xdata(), series.x)
                    np.testing.assert_allclose(line.get_ydata(), series.y)


def test_a_panel_is_valid_to_plotly(data: StudyData) -> None:
    from plotly.graph_objects import Figure

    error = Panel("", "y", [Series(["a", "b"], [1.0, 2.0], "#000000", "s", "points", "s", error=[0.1, 0.2])])
    for panel in [error, *(panel for chart in study_charts(data) for panel in chart.panels)]:
        Figure(for_plotly(panel))


def test_the_script_writes_a_table_and_pictures_of_each_figure(told: Home, tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPTS / "study.py"))["main"]
    main("told", output=tmp_path / "figure", home=told.root)
    written = {path.name for path in tmp_path.iterdir()}
    keys = ("best", "curves", "nfe", "importance", "slices", "parallel", "budget")
    assert written == {f"figure_{key}{ending}" for key in keys for ending in (".csv", ".png", ".svg")}
    assert len(pd.read_csv(tmp_path / "figure_curves.csv")) == sum(map(len, MEASURED.values()))


def test_a_target_costs_what_was_spent_when_it_was_reached(told: Home) -> None:
    frame = compute.progress(told, ["told"], "fid")
    assert set(frame.loc[frame["is_best"], "trial"]) == {3}
    costs = compute.costs_of(frame, [60.0, 41.0, 10.0]).set_index(["target", "trial"])
    assert costs.loc[(60.0, 0), "step"] == 8
    assert costs.loc[(60.0, 0), "seconds"] == 8 * SECONDS_A_STEP
    assert costs.loc[(60.0, 0), "gpu_hours"] == pytest.approx(8 * SECONDS_A_STEP * 0.5 / 3600)
    assert costs.loc[(60.0, 0), "joules"] == 8 * JOULES_A_STEP
    assert costs.loc[41.0, "reached"].to_dict() == {0: False, 1: True, 2: False, 3: True, 5: False}
    assert not costs.loc[10.0, "reached"].any()
    assert costs.loc[10.0, "seconds"].isna().all()
    assert "not reached (its best: 30)" in compute.say(costs.reset_index())[-1]


def test_targets_lie_along_the_best_curve_and_the_last_is_reached(told: Home) -> None:
    frame = compute.progress(told, ["told"], "fid")
    targets = compute.choose_targets(frame)
    assert targets == sorted(targets, reverse=True)
    assert targets[0] == 70.0
    assert targets[-1] == 30.0


def test_the_script_of_costs_names_what_was_not_reached(
    told: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPTS / "compute.py"))["main"]
    output = tmp_path / "compute"
    main(["told"], [60.0, 1.0], "fid", output, told.root)
    assert "fid 1: not reached" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "compute_targets.csv")) == 2 * 5, "the trials that were measured"
    with pytest.raises(UserError, match="has measured 'kid' yet"):
        main(["told"], None, "kid", output, told.root)
