"""Trials that differ only in how they sample share one training, and a home can be moved and told again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import MODELS, POINTS
from mlflow.tracking import MlflowClient
from program import gpm_tune, write_study

from gpm_tune.analysis import study_frames
from gpm_tune.analysis.study_data import read_data
from gpm_tune.study.accounts.records import StudyRecord, read_study
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

RHO = "model.sampling_noise.rho"
NOISE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
EDM = {
    **POINTS,
    "model": {**MODELS["edm"], "sampling_noise": NOISE},
    "evaluation": {**POINTS["evaluation"], "every": 12},
}
GRID: dict[str, Any] = {
    "experiment": EDM,
    "search": {RHO: {"choice": [3.0, 5.0, 7.0]}},
    "sampler": {"name": "brute_force"},
    "budget": {"trials": 3},
    "start_from": [],
    "resources": {"cpu": 1, "concurrent": 1},
}


def run(*arguments: Any, home: Path) -> str:
    result = gpm_tune(*arguments, home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def study(home: Path, name: str = "rho") -> StudyRecord:
    return read_study(Home(home).optuna_uri, name)


def scores(record: StudyRecord) -> dict[float, float | None]:
    return {trial.values[RHO]: trial.value for trial in record.trials}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a study of a grid over ρ, which was run to its end; its file lies beside it."""
    folder = tmp_path_factory.mktemp("shared")
    run("run", write_study(folder, name="rho", **GRID), home=folder / "home")
    return folder / "home"


def test_a_grid_over_how_to_sample_is_one_training(home: Path) -> None:
    record = study(home)
    assert [trial.state for trial in record.trials] == ["complete"] * 3
    (folder,) = (home / "runs").iterdir()
    assert {trial.run for trial in record.trials} == {folder.name}
    assert len(list((folder / "evaluations").iterdir())) == 3, "each trial measures in its own way"
    trained = json.loads((folder / "checkpoints" / "step_000000012" / "checkpoint.json").read_text())
    seconds = study_frames.trials(read_data(Home(home), "rho"))["seconds"]
    assert seconds.sum() == pytest.approx(trained["seconds"])
    assert (seconds > 0).sum() == 1
    assert len(set(scores(record).values())) == 3


def test_its_scores_are_those_of_trainings_of_their_own(home: Path, tmp_path: Path) -> None:
    for rho, value in scores(study(home)).items():
        file = tmp_path / f"rho_{rho:.0f}.yaml"
        file.write_text(yaml.safe_dump(space.put(EDM, {RHO: rho})))
        own = json.loads(run("train", file, "--device", "cpu", "--json", home=tmp_path / str(rho)))
        assert own["value"] == value


def test_a_study_with_the_same_base_trains_nothing(home: Path) -> None:
    (folder,) = (home / "runs").iterdir()
    before = {file: file.stat().st_mtime_ns for file in folder.glob("checkpoints/*/*")}
    run("run", write_study(home.parent, name="again", **GRID), home=home)
    assert list((home / "runs").iterdir()) == [folder]
    assert {file: file.stat().st_mtime_ns for file in folder.glob("checkpoints/*/*")} == before
    assert len(list((folder / "users").iterdir())) == 2
    assert scores(study(home, "again")) == scores(study(home))


@pytest.mark.parametrize("command", ["best", "sample", "evaluate"])
def test_a_trial_is_sampled_in_its_own_way(home: Path, tmp_path: Path, command: str) -> None:
    trial = study(home).trials[2]
    if command == "best":
        best = json.loads(run("best", "rho", "--json", home=home))
        assert best["experiment"]["model"]["sampling_noise"]["rho"] == best["values"][RHO]
        return
    if command == "evaluate":
        told = json.loads(run("evaluate", f"rho/{trial.number}", "--json", home=home))
        found = json.dumps(told)
        assert str(trial.value) in found, found
        return
    samples = []
    for number in (1, 2):
        file = tmp_path / f"{number}.npz"
        run("sample", f"rho/{number}", "--n", "8", "-o", file, home=home)
        samples.append(file.read_bytes())
    assert samples[0] != samples[1]


def exported(home: Path) -> dict[str, Any]:
    """All that MLflow has of the study, by the keys of its runs."""
    client = MlflowClient(Home(home).tracking_uri.secret())
    experiment = client.get_experiment_by_name("rho")
    assert experiment is not None
    found: dict[str, Any] = {}
    for each in client.search_runs([experiment.experiment_id]):
        data = each.data
        points = {
            name: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(each.info.run_id, name)]
            for name in data.metrics
        }
        folders = ["", *(file.path for file in client.list_artifacts(each.info.run_id) if file.is_dir)]
        files = sorted(
            f.path for path in folders for f in client.list_artifacts(each.info.run_id, path or None)
        )
        found[data.tags["mlflow.runName"]] = [points, dict(data.params), each.info.status, files]
    found["versions"] = [dict(version.tags) for version in client.search_model_versions("name = 'rho'")]
    return found


def test_a_lost_mlflow_is_filled_again_and_then_left_alone(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    before = exported(home)
    for file in (tmp_path / "home").glob("mlflow.db*"):
        file.unlink()
    shutil.rmtree(tmp_path / "home" / "artifacts")
    path = write_study(tmp_path, name="rho", **GRID)
    run("run", path, home=tmp_path / "home")
    after = exported(tmp_path / "home")
    assert after == before
    assert len(after["versions"]) == 1
    run("run", path, home=tmp_path / "home")
    assert exported(tmp_path / "home") == after


def test_a_home_that_was_moved_goes_on(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    longer = space.put(EDM, {"training.steps": 24})
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    output = run("train", tmp_path / "longer.yaml", "--device", "cpu", home=tmp_path / "moved")
    assert "continuing at step 12" in output
    best = json.loads(run("best", "rho", "--json", home=tmp_path / "moved"))
    assert run("evaluate", f"rho/{best['number']}", home=tmp_path / "moved")
