"""Studies in several homes that share a storage, which may be away: a folder, and a bucket."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import POINTS, experiment_of, study_of
from hands import run_a_part, run_trials
from mlflow import MlflowClient
from program import COMMAND, give_tables, write_study

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.lease import Lease
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.cluster.fetching import take_over
from gpm_tune.study.definition import space
from gpm_tune.study.running.manage import delete
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.mirror import Mirror
from gpm_tune.training.loop import Asker, Training
from gpm_tune.training.run import EvaluationRecord
from gpm_tune.uris import sqlite_uri

PLANTED = {  # secrets that a user has around a study
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYID0000000A",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key-b",
    "AWS_SESSION_TOKEN": "planted-session-token-c",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-d",
    "MLFLOW_TRACKING_TOKEN": "planted-bearer-e",
}
ALONE = {"cpu": 1, "concurrent": 1}
BESIDES_LOGS = shutil.ignore_patterns("sockets", "token")  # in Ray's folder
LONG = space.put(POINTS, {"training.steps": 2400, "evaluation.every": 300, "evaluation.nfe": []})
STEPS = list(range(300, 2401, 300))
ONE = study_of(name="one", budget={"trials": 1})


class Run:
    """A command with the study beside a home."""

    def __init__(self, home: Path, storage: str, command: str = "run") -> None:
        give_tables(home)
        words = [command, home.parent / "study.yaml", "--home", home]
        self._process = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "GPM_TUNE_STORAGE": storage},
        )
        self.output = ""

    def until(self, text: str) -> None:
        """Wait until it prints a line with the text."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"never printed {text!r}:\n{self.output}")

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def ends(self) -> int:
        """Its exit code."""
        rest, _ = self._process.communicate(timeout=300)
        self.output += rest
        return self._process.returncode


def shown(home: Home, name: str) -> dict[str, tuple[str, list[int]]]:
    """The status of each trial in MLflow, and the steps of its evaluations."""
    client = MlflowClient(home.tracking_uri.secret())
    experiment: Any = client.get_experiment_by_name(name)
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "gpm.trial" in run.data.tags]
    histories = [client.get_metric_history(run.info.run_id, "sliced_wasserstein") for run in runs]
    return {
        run.data.tags["gpm.trial"]: (run.info.status, [point.step for point in history])
        for run, history in zip(runs, histories, strict=True)
    }


def refuse_secrets(folder: Path) -> None:
    """Fail where a file, whatever it is, has one of the planted values."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"optuna.db", "mlflow.db", "output.txt", "gcs_server.out"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        found = [name for name, value in PLANTED.items() if value.encode() in content]
        assert not found, f"{file.relative_to(folder)} has {found}"


def checkpoints(storage: str) -> list[str]:
    runs = locations.children(f"{storage}/runs")
    return [
        f"{run}/{name}" for run in runs for name in locations.children(f"{storage}/runs/{run}/checkpoints")
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_of_two_homes_one_runs_and_each_goes_on_where_the_other_stopped(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = str(tmp_path / "storage") if kind == "folder" else request.getfixturevalue("bucket")
    logs = Path("/tmp") / f"ray-{os.getpid()}"  # short: sockets lie there
    logs.mkdir(mode=0o700)
    for name, value in {**PLANTED, "RAY_TMPDIR": str(logs)}.items():
        monkeypatch.setenv(name, value)
    write_study(tmp_path, name="far", experiment=LONG, budget={"trials": 2}, resources=ALONE)
    one, two = tmp_path / "one", tmp_path / "two"

    first = Run(one, storage)
    first.until("trial 0: step 600/")
    shutil.copytree(logs, tmp_path / "logs", symlinks=True, ignore=BESIDES_LOGS)
    refused = Run(two, storage)
    assert refused.ends() == 2, refused.output
    holder = f"held by gpm-tune run of study far (process {first._process.pid} on {socket.gethostname()}"
    assert f"{storage}/studies/far/lease.json: {holder}" in refused.output.replace("\n", " ")
    first.interrupt()
    assert first.ends() == 130, first.output

    second = Run(two, storage)
    assert second.ends() == 0, second.output
    assert "trial 0: step 300/" not in second.output, "it did not begin again"
    kept = checkpoints(storage)
    third = Run(one, storage)
    assert third.ends() == 0, third.output
    assert "all trials of far are done" in third.output
    assert checkpoints(storage) == kept

    records = [read_study(Home(home).optuna_uri, "far") for home in (one, two)]
    assert (records[0].id, records[0].trials) == (records[1].id, records[1].trials)
    assert [trial.state for trial in records[0].trials] == ["complete", "complete"]
    for home in (one, two):
        assert shown(Home(home), "far") == dict.fromkeys(("0", "1"), ("FINISHED", STEPS))
    assert sorted(str(trial.run) for trial in records[0].trials) == locations.children(f"{storage}/runs")
    assert list(logs.iterdir()) == [], "Ray's logs end with it"
    logs.rmdir()
    if kind == "bucket":
        locations.copy(storage, str(tmp_path / "bucket"))
    (tmp_path / "output.txt").write_text(first.output + second.output + third.output)
    refuse_secrets(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_study_waits_for_its_storage_and_does_not_make_it_anew(tmp_path: Path) -> None:
    write_study(tmp_path, name="away", experiment=LONG, budget={"trials": 1}, resources=ALONE)
    storage, aside = tmp_path / "storage", tmp_path / "aside"
    run = Run(tmp_path / "home", str(storage))
    run.until("trial 0: step 300/")
    storage.rename(aside)
    run.until("waiting for it")
    assert not storage.exists()
    aside.rename(storage)
    assert run.ends() == 0, run.output
    (trial,) = read_study(Home(tmp_path / "home").optuna_uri, "away").trials
    assert "the storage was away" in str(trial.note)
    assert shown(Home(tmp_path / "home"), "away") == {"0": ("FINISHED", STEPS)}
    assert run.output.count("trial 0: step 300/") == 1

    storage.rename(aside)
    refused = Run(tmp_path / "home", str(storage))
    assert refused.ends() == 2
    assert "runs is not there" in refused.output
    assert not storage.exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_whose_study_was_taken_over_stops(tmp_path: Path) -> None:
    write_study(tmp_path, name="taken", experiment=LONG, budget={"trials": 9}, resources=ALONE)
    storage = tmp_path / "storage"
    run = Run(tmp_path / "home", str(storage))
    run.until("trial 0: step 300/")
    lease = storage / "studies" / "taken" / "lease.json"
    taken = {**json.loads(lease.read_text()), "nonce": "a" * 32, "holder": "another one", "host": "elsewhere"}
    lease.write_text(json.dumps(taken))
    (lease.parent / "optuna.db").write_text("its results")
    assert run.ends() == 2, run.output
    assert "the lease went to another one" in run.output
    assert (lease.parent / "optuna.db").read_text() == "its results"
    assert json.loads(lease.read_text()) == taken


def test_equal_trainings_of_two_studies_in_two_homes_are_trained_once_and_deleted_with_the_last(
    tmp_path: Path,
) -> None:
    storage = str(tmp_path / "storage")
    homes = [Home(tmp_path / name, storage=storage) for name in ("a", "b")]
    studies = [study_of(name=name, budget={"trials": 1}) for name in ("a", "b")]  # both begin with the base
    run_trials(studies[0], homes[0])
    (run,) = homes[0].runs.names()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "storage").rglob("*.*") if file.is_file()}
    run_trials(studies[1], homes[1])
    records = [read_study(home.optuna_uri, study.name) for home, study in zip(homes, studies, strict=True)]
    assert [record.trials[0].run for record in records] == [run, run]
    assert records[0].trials[0].scores == records[1].trials[0].scores
    assert {file: file.stat().st_mtime_ns for file in files} == files, "nothing was written again"
    delete(homes[0], "a")
    assert homes[1].runs.names() == [run]
    assert homes[1].runs.named(run).is_trained(ONE.experiment)
    delete(homes[1], "b")
    assert homes[1].runs.names() == []


def measured(record: EvaluationRecord) -> tuple[int, dict[str, float]]:
    """What does not depend on the time that it took."""
    metrics = record.as_text().items()
    return record.step, {name: value for name, value in metrics if not re.match("system/|.*second", name)}


@pytest.mark.parametrize("moment", ["a training", "the wait for a lease"])
def test_a_training_waits_for_a_storage_that_went_away_and_loses_nothing(tmp_path: Path, moment: str) -> None:
    experiment, storage, aside = experiment_of(), tmp_path / "storage", tmp_path / "aside"
    whole = Home(tmp_path / "whole").open_runs().of(experiment)
    list(Training(experiment, whole, Asker("user", "whole")).evaluations())
    run = Home(tmp_path / "home", storage=str(storage)).open_runs().of(experiment)
    looks, errors = 0, list[Exception]()

    def go_away() -> bool:
        nonlocal looks
        looks += 1
        if looks == (7 if moment == "a training" else 2):
            storage.rename(aside)
        return False

    def note(error: Exception) -> None:
        errors.append(error)
        assert not storage.exists()
        if len(errors) == 2:
            aside.rename(storage)

    asker = Asker("user", "shared", should_stop=go_away, use_storage=lambda use: locations.retry(use, note))
    found = list(Training(experiment, run, asker).evaluations())
    assert len(errors) == 2
    judge = experiment.judge()
    expected = whole.evaluations(judge)
    assert [measured(record) for record in found] == [measured(record) for record in expected]
    assert run.evaluations(judge) == found
    assert run.is_trained(experiment)


def test_a_home_that_went_on_alone_is_not_overwritten_by_what_the_storage_has_of_before(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home", storage=str(tmp_path / "storage"))
    run_a_part(ONE, home)
    with Mirror(home, "one"):
        pass
    run_trials(ONE, home)
    before = read_study(home.optuna_uri, "one")
    take_over("one", home)
    assert read_study(home.optuna_uri, "one") == before


def test_a_study_that_another_home_runs_is_not_deleted_there(tmp_path: Path) -> None:
    homes = [Home(tmp_path / name, storage=str(tmp_path / "storage")) for name in ("a", "b")]
    run_trials(ONE, homes[0])
    with Mirror(homes[0], "one"):
        pass
    take_over("one", homes[1])
    with (
        Lease(f"{homes[0].stored('one')}/lease.json", "gpm-tune run of study one").held(),
        pytest.raises(UserError, match=r"(?s)is running: .*held by gpm-tune run of study one"),
    ):
        delete(homes[1], "one")
    assert len(read_study(homes[1].optuna_uri, "one").trials) == 1
    delete(homes[1], "one")
    assert not locations.exists(str(homes[0].stored("one")))
    assert homes[0].runs.names() == []


def test_another_study_of_the_same_name_in_the_storage_is_not_deleted(tmp_path: Path) -> None:
    home, other = Home(tmp_path / "a"), Home(tmp_path / "b", storage=str(tmp_path / "storage"))
    run_trials(ONE, home)
    run_trials(ONE, other)
    with Mirror(other, "one"):
        pass
    delete(Home(home.root, storage=other.storage), "one")
    assert read_study(sqlite_uri(Path(f"{other.stored('one')}/optuna.db")), "one").trials
    assert len(other.runs.names()) == 1
    assert home.runs.names() == [], "those in the home go, too"


def test_a_study_is_not_deleted_while_its_storage_is_away(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", storage=str(tmp_path / "storage"))
    run_trials(ONE, home)
    (tmp_path / "storage").rename(tmp_path / "aside")
    with pytest.raises(UserError, match="the study is still there"):
        delete(home, "one")
    assert not (tmp_path / "storage").exists()
    (tmp_path / "aside").rename(tmp_path / "storage")
    delete(home, "one")
    assert home.runs.names() == []


def test_a_lease_is_not_taken_in_the_place_of_a_disk_that_is_away(tmp_path: Path) -> None:
    place = tmp_path / "away" / "lease.json"
    with pytest.raises(FileNotFoundError), Lease(str(place), "one").held():
        pass
    assert not place.parent.exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_alone_waits_for_its_storage_too(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(LONG))
    storage, aside, home = tmp_path / "storage", tmp_path / "aside", Home(tmp_path / "home")
    run = Run(home.root, str(storage), command="train")
    run.until("step 300/")
    storage.rename(aside)
    run.until("waiting for it")
    assert not storage.exists()
    aside.rename(storage)
    assert run.ends() == 0, run.output
    client = MlflowClient(home.tracking_uri.secret())
    experiment: Any = client.get_experiment_by_name("study")
    (tracked,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(tracked.info.run_id, "sliced_wasserstein")
    assert [point.step for point in history] == STEPS
    assert "the storage was away" in tracked.data.tags["gpm.note"]
