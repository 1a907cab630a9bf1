"""Homes of version 0.1: `home_0_1.tar.xz`, which that program wrote (see README.md beside it)."""

import json
import shutil
import sqlite3
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from training_runs import values

import gpm_tune as package
from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.accounts.runs import model_of
from gpm_tune.study.accounts.trained import read_trained
from gpm_tune.study.accounts.trial_manager import TrialManager, TrialSpec
from gpm_tune.study.running.manage import delete
from gpm_tune.study.running.migration import migrate
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import only_once
from gpm_tune.study.storage.mirror import snapshot
from gpm_tune.training import checkpoint
from gpm_tune.training.loop import Asker, Training
from gpm_tune.training.run import is_whole

COMMAND = r"gpm-tune migrate \[--home H\] \[--storage S\]"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(Path(__file__).with_name("home_0_1.tar.xz")) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def home(archive: Path, tmp_path: Path) -> Home:
    """A home of version 0.1 that nothing was tracked in."""
    shutil.copytree(archive / "home", tmp_path / "home")
    (tmp_path / "home" / "mlflow.db").unlink()
    return Home(tmp_path / "home")


def manager_of(home: Home) -> TrialManager:
    definition = package.Study(home.study("small") / "study.yaml", home=home.root).definition
    return TrialManager(definition, home.optuna_uri)


def go_on(home: Home) -> tuple[TrialSpec, dict[int, dict[str, float]]]:
    """The trial that was interrupted, and what is measured when it goes on."""
    manager = manager_of(home)
    spec = manager.next()
    assert spec is not None
    asker, objective = Asker(f"study-{manager.id}", "tests"), manager.study.objective
    training = Training(spec.experiment, home.runs.of(spec.experiment), asker, objective=objective)
    return spec, {record.step: values(record.as_text()) for record in training.evaluations(spec.known_step)}


def contents(home: Home) -> dict[str, bytes]:
    """All that a home's training runs hold, and which of them are whose."""
    runs = Path(home.runs.location)
    files = [file for file in runs.rglob("*") if file.is_file() and file.suffix != ".partial"]
    found = {str(file.relative_to(runs)): file.read_bytes() for file in files}
    trials = read_study(home.optuna_uri, "small").trials
    return found | {f"trial {trial.number}": str(trial.run).encode() for trial in trials}


def test_a_study_goes_on_as_it_would_have_done(home: Home, archive: Path) -> None:
    before = {file: file.read_bytes() for file in (home.root / "studies").rglob("*") if file.is_file()}
    report = migrate(home, dry_run=True)
    assert not (home.root / "runs" / "users").exists()
    with pytest.raises(UserError, match=COMMAND):
        manager_of(home)
    done = migrate(home, dry_run=False)
    assert (done.converted, done.left_out, done.refused) == (report.converted, [], [])
    assert all(file.read_bytes() == content for file, content in before.items()), "the old things stay"

    record = read_study(home.optuna_uri, "small")
    assert [trial.state for trial in record.trials] == ["complete", "pruned", "interrupted"]
    for trial in record.trials:
        assert trial.run is not None
        run = home.runs.named(trial.run)
        assert all(map(is_whole, run.checkpoints()))
        assert model_of(f"small/{trial.number}", home).step == trial.best_step
    assert model_of("small", home).load()

    spec, measured = go_on(home)
    expected = json.loads((archive / "expected.json").read_text())
    assert (spec.number, spec.known_step) == (2, 100)
    assert measured == {
        step: pytest.approx(
            {name: values(expected[str(step)]).get(name, value) for name, value in found.items()}, rel=1e-4
        )
        for step, found in measured.items()
    }
    assert list(measured) == [200, 300, 400]
    assert migrate(home, dry_run=False).converted == [], "it is of today's format"
    delete(home, "small")
    assert all("distilled" in str(user) for user in Path(home.runs.location).glob("*/users/*"))


def test_an_experiment_and_its_teacher_are_trained_already(home: Home) -> None:
    assert migrate(home, dry_run=False).refused == []
    (user,) = Path(home.runs.location).glob("score_gan-*/users/train-distilled-*")
    run = home.runs.named(user.parents[1].name)
    model = model_of(run.name, home)
    assert run.is_trained(model.experiment)
    teacher = model.experiment.teacher
    assert teacher is not None
    assert home.runs.of(teacher).newest(60) == 60
    assert (Path(home.runs.of(teacher).location) / "users" / user.name).exists()
    assert [trained.run for trained in read_trained(home, "distilled")] == [run.name]


class Killed(BaseException):
    """The process ends here."""


class Fault:
    """Ends the process before one of its writes, each of which renames a file into its place."""

    def __init__(self) -> None:
        self.left: float = float("inf")
        self.writes = 0
        sys.addaudithook(self)  # for good: Python removes none

    def __call__(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if event == "os.rename":
            self.writes += 1
            self.left -= 1
            if self.left < 0:
                self.left = float("inf")
                raise Killed


@pytest.fixture(scope="module")
def fault() -> Iterator[Fault]:
    fault = Fault()
    yield fault
    fault.left = float("inf")


def test_killed_at_any_write_it_is_done_by_the_next_call(home: Home, fault: Fault, tmp_path: Path) -> None:
    whole = Home(tmp_path / "whole")
    shutil.copytree(home.root, whole.root, copy_function=shutil.copy2)
    before = fault.writes
    migrate(whole, dry_run=False)
    writes = fault.writes - before
    assert writes > 30
    for survived in range(0, writes, 9):
        cut = Home(tmp_path / f"cut {survived}")
        shutil.copytree(home.root, cut.root)
        fault.left = survived
        with pytest.raises(Killed):
            migrate(cut, dry_run=False)
        assert migrate(cut, dry_run=False).refused == []
        assert contents(cut) == contents(whole)


def as_storage(home: Home, storage: Path) -> None:
    """What version 0.1 had in a storage, and not in the home."""
    stored = storage / "studies" / "small"
    for part in ("checkpoints", "spool"):
        shutil.copytree(home.study("small") / part, stored / part)
    shutil.copy(home.study("small") / "study.yaml", stored)
    snapshot(home.root / "optuna.db", stored / "optuna.db")
    shutil.rmtree(home.study("small") / "checkpoints")


def test_a_storage_is_converted_with_its_home_and_without(home: Home, tmp_path: Path) -> None:
    as_storage(home, tmp_path / "storage")
    found = migrate(home, dry_run=False).refused
    assert len(found) == 1
    assert "give the --storage that the study had" in found[0]
    with_storage = Home(home.root, storage=str(tmp_path / "storage"))
    another = Home(tmp_path / "another", storage=str(tmp_path / "storage"))
    stored = str(tmp_path / "storage" / "runs")
    for place in (another, with_storage):
        assert migrate(place, dry_run=False).refused == []
        runs = {trial.run for trial in read_study(place.optuna_uri, "small").trials}
        assert runs == {run for run in locations.children(stored) if run.startswith("gan-")}
    _, measured = go_on(another)
    assert list(measured) == [200, 300, 400]


def test_mlflow_goes_on_with_the_same_runs(archive: Path, tmp_path: Path) -> None:
    shutil.copytree(archive / "home", tmp_path / "home")
    home = Home(tmp_path / "home")
    with closing(sqlite3.connect(home.root / "mlflow.db")) as database, database:  # it has been elsewhere
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, '/gpm-runs', ?)",
                [str(home.root)],
            )
    client = MlflowClient(home.tracking_uri.secret())
    experiment: Any = client.get_experiment_by_name("small")
    before = {run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    assert migrate(home, dry_run=False).left_out == []
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in runs} == before
    tagged = {run.data.tags.get("gpm.trial"): run.data.tags.get("gpm.training_run") for run in runs}
    trials = read_study(home.optuna_uri, "small").trials
    assert tagged == {None: None} | {str(trial.number): trial.run for trial in trials}
    for run in runs:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "sliced_wasserstein")]
        assert len(steps) == len(set(steps)), "nothing was sent a second time"


def test_what_cannot_be_converted_is_refused_in_sentences(home: Home) -> None:
    with only_once("study", home.study("small")):
        assert "is running" in migrate(home, dry_run=False).refused[0]
    old = next(home.study("small").glob("checkpoints/*/*/*"))
    with pytest.raises(UserError, match=rf"checkpoint format 3, this version reads 4.*\nhelp: .*{COMMAND}"):
        checkpoint.read_record(old)
    with pytest.raises(UserError, match=COMMAND):
        model_of("small", home)
    with closing(sqlite3.connect(home.root / "optuna.db")) as database, database:
        database.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "SELECT trial_id, 'forked_from', '{}' FROM trials LIMIT 1"
        )
    refused = migrate(home, dry_run=False).refused
    assert len(refused) == 1
    assert "population-based training" in refused[0]


def test_a_damaged_checkpoint_is_left_out(home: Home) -> None:
    newest = max(home.study("small").glob("checkpoints/*/trial_0002/*"))
    (newest / "weights.safetensors").write_bytes(b"")
    assert migrate(home, dry_run=False).refused == []
    _, measured = go_on(home)
    assert list(measured) == [200, 300, 400]
