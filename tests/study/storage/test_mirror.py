"""A study's results in the storage, while they come, and while the storage is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from examples import study_of
from hands import begin, run_trials

from gpm_tune.lease import LeaseLostError
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.mirror import Mirror
from gpm_tune.uris import sqlite_uri

STUDY = study_of(name="made")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "head", storage=str(tmp_path / "storage"))


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_what_the_home_alone_has_comes_to_the_storage(home: Home) -> None:
    run_trials(STUDY, home, 1)
    with Mirror(home, "made"):
        pass
    stored = Path(f"{home.stored('made')}")
    assert sorted(file.name for file in stored.iterdir()) == ["optuna.db", "requirements.txt", "study.yaml"]
    for name in ("requirements.txt", "study.yaml"):
        assert (stored / name).read_bytes() == (home.study("made") / name).read_bytes()
    found, original = (read_study(uri, "made") for uri in (sqlite_uri(stored / "optuna.db"), home.optuna_uri))
    assert found == original
    assert len(original.trials) == 1


@pytest.mark.parametrize("in_its_place", ["nothing", "a file"])
def test_a_storage_that_is_away_is_not_made_anew_and_gets_all_later(
    in_its_place: str, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpm_tune.study.storage.mirror.PUSH_EVERY", 0.05)
    begin(STUDY, home)
    storage = Path(str(home.storage))
    aside = storage.with_name("aside")
    with Mirror(home, "made"):
        storage.rename(aside)
        if in_its_place == "a file":
            storage.touch()  # even root cannot write there
        wait_for(lambda: "is away" in caplog.text)
        time.sleep(0.2)  # some attempts
        storage.unlink(missing_ok=True)  # fails where it is a folder
        aside.rename(storage)
        wait_for(lambda: "is back" in caplog.text)
    assert caplog.text.count("is away") == 1
    assert (storage / "studies" / "made" / "optuna.db").is_file()


def test_a_process_that_was_replaced_leaves_the_results_of_its_successor_alone(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    begin(STUDY, home)
    stored = Path(f"{home.stored('made')}")
    stored.mkdir(parents=True)
    (stored / "optuna.db").write_text("the successor's")

    def check() -> None:
        raise LeaseLostError("the lease went to another one")

    with Mirror(home, "made", check):
        pass
    assert [file.read_text() for file in stored.iterdir()] == ["the successor's"]
    assert "the lease went to another one" in caplog.text
