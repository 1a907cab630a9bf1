"""One best, everywhere: terminal, report, MLflow and Python name the same winner with the same value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import POINTS
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from program import gpm_tune, write_study
from rich.console import Console

from gpm_tune import Study
from gpm_tune.analysis.report import _trials
from gpm_tune.analysis.study_data import read_data
from gpm_tune.study.definition import space
from gpm_tune.study.running.single import train
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment

METRIC = "sliced_wasserstein"
FAST = space.put(POINTS, {"model.eta": 20.0, "training.optimizer.lr": 0.1})  # best at its first evaluation
SEARCH = {"training.optimizer.lr": {"choice": [0.1, 0.03, 0.003]}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home of a study whose best trial gets worse, and ends as the worst of all."""
    folder = tmp_path_factory.mktemp("best")
    path = write_study(
        folder,
        name="worse",
        experiment=FAST,
        search=SEARCH,
        sampler={"name": "brute_force"},
        budget={"trials": 2},
        resources={"cpu": 1, "concurrent": 1},
    )
    for trials in ("2", "3"):  # the second time the study is continued
        result = gpm_tune("run", path, "--trials", trials, home=folder / "home")
        assert result.returncode == 0, result.stdout + result.stderr
    return Home(folder / "home", f"sqlite:///{folder / 'home' / 'mlflow.db'}")


def tracked(home: Home, order: str = "attributes.start_time ASC") -> list[Run]:
    """The trials of the study in MLflow."""
    client = home.mlflow()
    experiment = client.get_experiment_by_name("worse")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=[order])
    return [run for run in runs if "gpm.trial" in run.data.tags]


def told(home: Home, *arguments: str) -> Any:
    result = gpm_tune(*arguments, "--json", home=home.root)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_terminal_report_mlflow_and_python_agree(home: Home) -> None:
    trials = told(home, "status", "worse")["trials"]
    best = told(home, "best", "worse")
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    client, runs = home.mlflow(), {int(run.data.tags["gpm.trial"]): run for run in tracked(home)}
    last = {number: run.data.metrics[METRIC] for number, run in runs.items()}
    assert best["best_step"] == 4 < best["step"] == 12, "the case is one where the best is not the last"
    assert best["number"] == max(last, key=last.__getitem__), "and the last value names another winner"

    frame = Study.open("worse", home=home.root).trials().set_index("trial")
    table = _trials(read_data(home, "worse"))
    page = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    for trial in trials:
        number = trial["number"]
        metrics = runs[number].data.metrics
        (*_, point) = client.get_metric_history(runs[number].info.run_id, f"best/{METRIC}")
        assert metrics[f"best/{METRIC}"] == point.value == trial["value"] == frame[METRIC][number]
        assert point.step == trial["best_step"] == frame["best_step"][number]
        by_nfe = {int(nfe): values[METRIC] for nfe, values in trial["measured"]["curve"].items()}
        assert metrics["best/nfe"] == max(by_nfe) == frame["nfe"][number]
        shown = page[str(number)]
        assert float(shown[METRIC]) == pytest.approx(trial["value"], rel=1e-4)
        assert (shown["best_step"], shown["nfe"]) == (str(trial["best_step"]), str(max(by_nfe)))
        curve = client.get_metric_history(runs[number].info.run_id, f"{METRIC}_by_nfe")
        assert set(by_nfe) == {2, 4}
        assert {p.step: p.value for p in curve} == by_nfe, "of the best evaluation"

    (first, *_) = tracked(home, f"metrics.`best/{METRIC}` ASC")
    assert int(first.data.tags["gpm.trial"]) == best["number"] == int(next(iter(page)))
    parent = client.get_run(first.data.tags["mlflow.parentRunId"])
    assert parent.data.metrics[f"best/{METRIC}"] == best["value"]
    assert (parent.data.tags["gpm.best_trial"], parent.data.tags["gpm.best_step"]) == (
        str(best["number"]),
        str(best["best_step"]),
    )
    found = Study.open("worse", home=home.root).best()
    assert (found.number, found.value) == (best["number"], best["value"])
    versions = client.search_model_versions("name = 'worse'")
    assert versions
    for version in versions:
        assert (version.tags["trial"], version.tags["step"]) == (str(best["number"]), str(best["best_step"]))
        assert float(version.tags["value"]) == best["value"]
    (listed,) = told(home, "list")
    assert min(trial["value"] for trial in listed["trials"]) == best["value"]
    assert f"{best['value']:.4g}" in gpm_tune("list", home=home.root).stdout


def test_an_experiment_alone_tracks_its_best_and_again_changes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient(home.tracking_uri.secret())
    histories = []
    for _ in range(2):
        trained = train(Experiment.model_validate(FAST), "fast", home, "cpu", Console(quiet=True))
        assert (trained.best_step, trained.step) == (4, 12)
        experiment = client.get_experiment_by_name("fast")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        names = (f"best/{METRIC}", "best/nfe", f"{METRIC}_by_nfe", f"{METRIC}/nfe_2")
        histories.append({name: client.get_metric_history(run.info.run_id, name) for name in names})
    once, again = ({n: [(p.step, p.timestamp, p.value) for p in h[n]] for n in h} for h in histories)
    assert once == again
    (best,) = once[f"best/{METRIC}"]
    assert (best[0], best[2]) == (4, trained.value)
    assert {step: value for step, _, value in once[f"{METRIC}_by_nfe"]}[2] == next(
        value for step, _, value in once[f"{METRIC}/nfe_2"] if step == 4
    )


@pytest.mark.slow
def test_the_exported_best_trains_to_the_same_best(home: Home, tmp_path: Path) -> None:
    best = told(home, "best", "worse")
    file = tmp_path / "best.yaml"
    file.write_text(yaml.safe_dump(best["experiment"]))
    result = gpm_tune("train", file, "--device", "cpu", "--json", home=tmp_path / "home")
    trained = json.loads(result.stdout)
    assert (trained["value"], trained["best_step"]) == (best["value"], best["best_step"])
