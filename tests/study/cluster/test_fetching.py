"""Studies brought into a home from a folder or a bucket: whole, again, and nothing but what is theirs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from examples import study_of
from hands import begin, run_a_part, run_trials, train
from mlflow import MlflowClient

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.confirmation import ConfirmationManager
from gpm_tune.study.accounts.records import read_confirmation, read_study
from gpm_tune.study.accounts.runs import model_of
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.cluster.fetching import fetch, from_storage, take_over
from gpm_tune.study.running.manage import delete
from gpm_tune.study.running.publishing import publish_study
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.mirror import Mirror

STUDY = study_of(name="made", budget={"trials": 3})


def mirrored(home: Home) -> Home:
    with Mirror(home, "made"):
        pass
    return home


@pytest.fixture
def there(tmp_path: Path) -> Home:
    """A home with a storage."""
    return Home(tmp_path / "head", storage=str(tmp_path / "storage"))


@pytest.fixture
def here(tmp_path: Path) -> Home:
    return Home(tmp_path / "laptop")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The content of each file of training runs, and when it was written."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def with_checkpoints(home: Home) -> set[str]:
    return {file.parents[2].name for file in home.root.glob("runs/*/checkpoints/*/checkpoint.json")}


@pytest.mark.parametrize("kind", ["folder", "bucket"])
@pytest.mark.parametrize("checkpoints", ["best", "all", "none"])
def test_a_study_is_fetched_and_published_whole_whatever_storage_is_set_here(
    kind: str, checkpoints: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    storage = str(tmp_path / "storage") if kind == "folder" else request.getfixturevalue("bucket")
    there = Home(tmp_path / "head", storage=storage)
    run_trials(STUDY, there)
    mirrored(there)
    here = Home(tmp_path / "laptop", storage=storage)
    fetched = fetch("made", here, from_storage(storage), checkpoints=checkpoints)
    original = read_study(there.optuna_uri, "made")
    assert fetched == original
    assert (here.study("made") / "requirements.txt").read_text() == "x==1\n"
    runs = [str(trial.run) for trial in original.trials]
    assert sorted(here.alone.runs.names()) == sorted(set(runs))
    best = original.ranked()[0]
    expected = {"best": {best.run}, "all": set(runs), "none": set()}[checkpoints]
    assert with_checkpoints(here) == expected
    for file in there.runs.names():
        for part in ("experiment.yaml", "evaluations", "samples"):
            assert locations.exists(f"{here.root}/runs/{file}/{part}")
    (tmp_path / "storage").exists() and (tmp_path / "storage").rename(tmp_path / "aside")
    if expected:
        assert model_of(f"made/{best.number}", here.alone).step == best.best_step
    publish_study("made", here.alone)
    check_published(here, checkpoints != "none")


def check_published(home: Home, is_registered: bool) -> None:
    """MLflow has every point and picture, and the best model where its weights are here."""
    record, client = read_study(home.optuna_uri, "made"), MlflowClient(home.tracking_uri.secret())
    experiment: Any = client.get_experiment_by_name("made")
    runs = {run.data.tags.get("gpm.trial"): run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {None, *(str(trial.number) for trial in record.trials)}
    for trial in record.trials:
        run = runs[str(trial.number)].info.run_id
        history = client.get_metric_history(run, "sliced_wasserstein")
        assert [point.step for point in history] == [4, 8, 12]
        assert trial.scores == [min(point.value for point in history)]
        assert len(client.list_artifacts(run, "samples")) == 3
    versions = client.search_model_versions("name = 'made'")
    best = runs[str(record.ranked()[0].number)].info.run_id
    assert [version.run_id for version in versions] == ([best] if is_registered else [])


def test_what_is_fetched_twice_is_as_after_once(there: Home, here: Home) -> None:
    run_trials(STUDY, there, 2)
    get = from_storage(str(mirrored(there).storage))
    fetch("made", here, get, checkpoints="all")
    record, before = read_study(here.optuna_uri, "made"), contents(here.root / "runs")
    fetch("made", here, get, checkpoints="all")
    assert read_study(here.optuna_uri, "made") == record
    after = contents(here.root / "runs")
    assert {name: found[0] for name, found in after.items()} == {name: f[0] for name, f in before.items()}


def test_a_study_that_goes_on_is_brought_up_to_date(there: Home, here: Home) -> None:
    run_a_part(STUDY, there)
    get = from_storage(str(mirrored(there).storage))
    (trial,) = fetch("made", here, get, checkpoints="best").trials
    assert (trial.state, trial.step) == ("interrupted", 4)
    run_trials(STUDY, there)
    mirrored(there)
    trials = fetch("made", here, get, checkpoints="none").trials
    assert [(trial.state, trial.step) for trial in trials] == [("complete", 12)] * 3
    publish_study("made", here)
    check_published(here, is_registered=trial.run == read_study(here.optuna_uri, "made").ranked()[0].run)


def test_a_trial_that_runs_there_is_interrupted_here_and_can_be_continued(there: Home, here: Home) -> None:
    manager = begin(STUDY, there)
    spec = manager.next()
    assert spec is not None
    (trial,) = fetch("made", here, from_storage(str(mirrored(there).storage)), checkpoints="all").trials
    assert (trial.state, trial.step, trial.run) == ("interrupted", 0, None), "no training has begun"
    train(manager, there, spec)
    fetch("made", here, from_storage(str(mirrored(there).storage)), checkpoints="all")
    run_trials(STUDY, here)
    assert [trial.state for trial in read_study(here.optuna_uri, "made").trials] == ["complete"] * 3


def test_an_interrupted_study_goes_on_here_from_the_fetched_checkpoint(there: Home, here: Home) -> None:
    run_a_part(STUDY, there)
    fetch("made", here, from_storage(str(mirrored(there).storage)), checkpoints="all")
    before = {name: found for name, found in contents(here.root / "runs").items() if "evaluations" in name}
    run_trials(STUDY, here)
    after = contents(here.root / "runs")
    assert before.items() <= after.items(), "what was measured is not measured again"
    assert [trial.step for trial in read_study(here.optuna_uri, "made").trials] == [12] * 3


def test_links_and_pipes_are_not_fetched(tmp_path: Path, there: Home, here: Home) -> None:
    run_trials(STUDY, there, 1)
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "mine.json").write_text("a file of mine")

    def with_links(path: str, to: Path) -> None:
        """As rsync brings them from a cluster."""
        from_storage(str(there.storage))(path, to)
        if to.is_dir():
            (to / "link.json").symlink_to(planted / "mine.json")
            (to / "folder").symlink_to(planted)
            os.mkfifo(to / "pipe")
        elif to.name == "experiment.yaml":
            to.unlink()
            to.symlink_to(planted / "mine.json")

    mirrored(there)
    fetch("made", here, with_links, checkpoints="all")
    (run,) = here.runs.names()
    found = sorted(
        str(file.relative_to(here.root / "runs" / run)) for file in (here.root / "runs").rglob("*")
    )
    assert not [name for name in found if "link" in name or "folder" in name or "pipe" in name]
    assert not (here.root / "runs" / run / "experiment.yaml").exists()
    assert len([name for name in found if name.startswith("evaluations/")]) == 3


@pytest.mark.parametrize("run", ["../../mine", "/mine", ".."])
def test_a_run_with_a_place_for_a_name_is_not_fetched(there: Home, here: Home, run: str) -> None:
    manager = begin(STUDY, there)
    spec = manager.next()
    assert spec is not None
    manager.keep_run(spec.number, run)
    get = from_storage(str(mirrored(there).storage))
    with pytest.raises(UserError, match="is no name of a folder"):
        fetch("made", here, get, checkpoints="all")
    assert not here.runs.names()


def test_new_seeds_that_were_tried_elsewhere_are_taken_over(tmp_path: Path, there: Home) -> None:
    study = study_of(name="made", budget={"trials": 1}, confirm={"trials": 1, "seeds": 2})
    run_trials(study, there)
    mirrored(there)
    other = Home(tmp_path / "other", storage=there.storage)
    take_over("made", other)
    stage = ConfirmationManager(study, other.optuna_uri, read_study(other.optuna_uri, "made").ranked())
    spec = stage.next()
    assert spec is not None
    begin(study, other)
    train(stage, other, spec)
    mirrored(other)
    take_over("made", there)
    confirmed = read_confirmation(there.optuna_uri, "made")
    assert confirmed is not None
    assert [trial.state for trial in confirmed.trials] == ["complete"]


def test_a_part_that_cannot_be_read_is_said_and_comes_with_the_next_fetch(
    there: Home, here: Home, caplog: pytest.LogCaptureFixture
) -> None:
    run_trials(STUDY, there, 1)
    get = from_storage(str(mirrored(there).storage))

    def failing(path: str, to: Path) -> None:
        if path.endswith("samples"):
            raise OSError("the connection was lost")
        get(path, to)

    fetch("made", here, failing, checkpoints="all")
    assert "samples is left out: the connection was lost; fetch again" in caplog.text
    assert not list(here.root.glob("runs/*/samples"))
    fetch("made", here, get, checkpoints="all")
    assert len(list(here.root.glob("runs/*/samples/*.png"))) == 3


def test_nothing_is_fetched_over_more_than_is_there(tmp_path: Path, there: Home, here: Home) -> None:
    run_a_part(STUDY, there)
    get = from_storage(str(mirrored(there).storage))
    run_a_part(STUDY, other := Home(tmp_path / "other"))
    with pytest.raises(UserError, match="another study named 'made'"):
        fetch("made", other, get, checkpoints="none")
    fetch("made", here, get, checkpoints="none")
    manager = TrialManager(STUDY, here.optuna_uri)
    spec = manager.next()
    assert spec is not None
    manager.fail(spec.number, "it ended, and nothing was trained")
    with pytest.raises(UserError, match="continued here"):
        fetch("made", here, get, checkpoints="none")
    with pytest.raises(UserError, match="study 'unknown' cannot be fetched"):
        fetch("unknown", here, get, checkpoints="none")
    for name in ("", "../made", ".made"):
        with pytest.raises(UserError, match="no study's name"):
            fetch(name, here, get, checkpoints="none")


def test_what_a_study_has_been_through_elsewhere_is_taken_over_and_no_less(
    tmp_path: Path, there: Home
) -> None:
    run_trials(STUDY, there, 1)
    mirrored(there)
    other = Home(tmp_path / "other", storage=there.storage)
    take_over("made", other)
    manager = begin(STUDY, other)
    spec = manager.next()
    assert spec is not None
    manager.fail(spec.number, "nothing was trained, and yet it is known")
    mirrored(other)
    run_uri = there.optuna_uri
    take_over("made", there)
    assert [trial.state for trial in read_study(run_uri, "made").trials] == ["complete", "fail"]
    run_trials(STUDY, there)
    take_over("made", there)  # the storage has less
    assert [trial.state for trial in read_study(run_uri, "made").trials] == ["complete", "fail", "complete"]


def test_a_fetched_study_is_deleted_with_its_runs_and_the_storage_keeps_it(there: Home, here: Home) -> None:
    run_trials(STUDY, there, 2)
    get = from_storage(str(mirrored(there).storage))
    fetch("made", here, get, checkpoints="all")
    delete(here, "made")
    assert here.runs.names() == []
    assert len(there.runs.names()) == 2
    assert len(fetch("made", here, get, checkpoints="all").trials) == 2
