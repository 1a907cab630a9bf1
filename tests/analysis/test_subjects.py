"""The way from words to models."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest

from gpm_tune.analysis.figures import refuse_mixed
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import StudyRecord, read_study
from gpm_tune.study.storage.home import Home

slow = pytest.mark.slow  # the finished study takes a real Ray cluster


@pytest.fixture
def home(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Home(finished)


@pytest.fixture
def record(home: Home) -> StudyRecord:
    return read_study(home.optuna_uri, "digits")


@slow
@pytest.mark.parametrize(
    ("word", "origins"),
    [("digits/1", ["digits/1"]), ("digits/*", [f"digits/{n}" for n in range(4)])],
)
def test_words_name_models(home: Home, word: str, origins: list[str]) -> None:
    assert [subject.origin for subject in find_subjects(home, [word])] == origins


@slow
def test_a_study_stands_for_its_best_trial_and_a_run_for_itself(home: Home, record: StudyRecord) -> None:
    best = record.ranked()[0]
    tracked = home.mlflow()
    experiment = tracked.get_experiment_by_name("digits")
    assert experiment is not None
    (run,) = tracked.search_runs([experiment.experiment_id], f"tags.`gpm.trial` = '{best.number}'")
    by_study, by_run = find_subjects(home, ["digits", f"mine={run.info.run_id}"])
    assert by_study.saved == by_run.saved
    assert by_study.saved.folder.parents[1] == home.root / "runs" / str(best.run)
    assert by_study.saved.step == best.best_step
    assert (by_study.label, by_run.label) == ("Discriminator Flow", "mine")


@slow
def test_a_checkpoint_that_is_gone_is_left_out_with_a_warning(
    home: Home, record: StudyRecord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(home.root, tmp_path / "home")
    home = Home(tmp_path / "home")
    runs = home.root / "runs"
    kept, gone = tmp_path / "kept", runs / str(record.trials[1].run) / "checkpoints"
    shutil.copytree(runs / str(record.trials[0].run), kept)
    shutil.rmtree(gone)
    with caplog.at_level(logging.WARNING):
        (subject,) = find_subjects(home, [str(kept), "digits/1"])
    assert subject.saved.folder.parents[1] == kept
    assert "left out: study 'digits': trial 1 is without a checkpoint on this machine" in caplog.text
    with pytest.raises(UserError, match="trial 1 is without a checkpoint"):
        find_subjects(home, ["digits/1"])
    with pytest.raises(UserError, match="has no trial 77; it has 4 trials"):
        find_subjects(home, [str(kept), "digits/77"])


def test_labels_tell_models_apart(models: dict[str, Path]) -> None:
    home = Home(models["gan"])
    pair = [str(models["gan"]), str(models["gan_again"])]
    assert [subject.label for subject in find_subjects(home, pair, replicates=True)] == ["GAN", "GAN"]
    assert [s.label for s in find_subjects(home, pair)] == [f"GAN ({folder})" for folder in pair]
    with pytest.raises(UserError, match="'x' names 2 models, which differ in more than their seed"):
        find_subjects(home, [f"x={models['gan']}", f"x={models['edm']}"], replicates=True)


def test_what_was_measured_differently_is_refused_by_name() -> None:
    frame = pd.DataFrame({"label": ["a", "b", "c"], "features": ["small", "inception", "small"]})
    with pytest.raises(UserError, match=r"differ in features .*small: a, c; inception: b"):
        refuse_mixed(frame, "the models", ["features"])
    refuse_mixed(frame[frame["features"] == "small"], "the models", ["features"])
