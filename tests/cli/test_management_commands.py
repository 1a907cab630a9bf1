"""resume, list, status --watch, stop, compare, delete: as typed, on real studies."""

import json
import time
from pathlib import Path

import pytest
from examples import IMAGES, POINTS, study_of
from hands import run_trials
from mlflow import MlflowClient
from program import Started, give_tables, gpm_tune, write_study

from gpm_tune.study.definition import space
from gpm_tune.study.running.manage import is_running
from gpm_tune.study.running.publishing import publish_study
from gpm_tune.study.storage.home import Home


@pytest.mark.slow
def test_a_study_is_extended_compared_and_deleted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    give_tables(home)
    for name, trials in (("one", 1), ("one", 2), ("two", 1), ("two", 2)):
        run_trials(study_of(name=name, budget={"trials": trials}), Home(home))
        publish_study(name, Home(home))
    result = gpm_tune("resume", "two", "--trials", "3", home=home)
    assert result.returncode == 0, result.stderr
    listed = {
        study["name"]: study["trials"] for study in json.loads(gpm_tune("list", "--json", home=home).stdout)
    }
    assert {name: len(trials) for name, trials in listed.items()} == {"one": 2, "two": 3}
    table = gpm_tune("compare", "one", "two", home=home).stdout
    assert {trial["run"] for trial in listed["one"]} < {trial["run"] for trial in listed["two"]}, "they share"
    assert "2 complete" in table
    assert "3 complete" in table
    assert "model.eta" in table
    assert "3 complete" in gpm_tune("status", "two", "--watch", home=home).stdout, "ends as nothing runs"
    assert "is not running" in gpm_tune("stop", "two", home=home).stdout

    client = MlflowClient(Home(home).tracking_uri.secret())
    tracked = client.get_experiment_by_name("two")
    assert tracked is not None
    foreign = client.create_run(tracked.experiment_id).info.run_id
    source = client.get_run(foreign).info.artifact_uri
    client.create_model_version("two", f"{source}/by_hand", foreign)
    refused = gpm_tune("delete", "two", home=home)
    assert refused.returncode == 2
    assert "\nhelp: say so with --yes" in refused.stderr
    deleted = gpm_tune("delete", "two", "--yes", home=home)
    assert deleted.returncode == 0, deleted.stderr
    assert {run.name for run in (home / "runs").iterdir()} == {trial["run"] for trial in listed["one"]}
    assert "version 1, 2 is deleted" in deleted.stdout, "the best after one trial, and the best after two"
    assert "has a run that is not the study's" in deleted.stdout
    assert [v.run_id for v in client.search_model_versions("name = 'two'")] == [foreign]
    assert [run.info.run_id for run in client.search_runs([tracked.experiment_id])] == [foreign]
    client.delete_run(foreign)
    assert [s["name"] for s in json.loads(gpm_tune("list", "--json", home=home).stdout)] == ["one"]
    assert not (home / "studies" / "two").exists()
    run_trials(study_of(name="two", budget={"trials": 1}), Home(home))
    publish_study("two", Home(home))
    experiment = client.get_experiment_by_name("two")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2, "the study and its one trial"
    assert "the registered model 'one'" in gpm_tune("delete", "one", "--yes", home=home).stdout
    assert client.get_experiment_by_name("one") is None
    assert not client.search_model_versions("name = 'one'")


@pytest.mark.slow
def test_a_running_study_is_stopped_from_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / "home"
    long = space.put(POINTS, {"training.steps": 100_000, "evaluation.every": 50_000})
    path = write_study(tmp_path, name="long", experiment=long, budget={"trials": 2})
    running = Started("run", path, "--home", home, folder=tmp_path)
    deadline = time.monotonic() + 120
    while not list(home.glob("runs/*/lease.json")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert is_running(Home(home), "long")
    refused = gpm_tune("delete", "long", "--yes", home=home)
    assert refused.returncode == 2
    assert "is running; stop it first" in refused.stderr
    stopped = gpm_tune("stop", "long", home=home)
    assert "has stopped" in stopped.stdout
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130, output
    trials = json.loads(gpm_tune("status", "long", "--json", home=home).stdout)["trials"]
    assert {trial["state"] for trial in trials} == {"interrupted"}
    assert not is_running(Home(home), "long")


@pytest.mark.parametrize(
    "words",
    [["resume", "nothing"], ["stop", "nothing"], ["delete", "nothing", "--yes"], ["compare", "nothing"]],
)
def test_unknown_studies_are_refused(tmp_path: Path, words: list[str]) -> None:
    result = gpm_tune(*words, home=tmp_path / "home")
    assert result.returncode == 2
    assert "no study is named 'nothing'" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_measured_different_things_is_not_compared(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    search = {"model.eta": {"float": [1.0, 5.0]}}
    for name, experiment in (("points", POINTS), ("digits", space.put(POINTS, IMAGES))):
        run_trials(study_of(name=name, experiment=experiment, search=search), home, 1)
    result = gpm_tune("compare", "digits", "points", home=home.root)
    assert result.returncode == 2
    assert "studies 'digits' and 'points' cannot be compared: they differ in objectives" in result.stderr
