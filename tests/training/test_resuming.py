"""Resuming: from the newest whole checkpoint, saying what was passed over."""

import logging
from pathlib import Path

import pytest
from examples import experiment_of

from gpm_tune.training import Trainer
from gpm_tune.training.checkpoint import newest_first, next_folder
from gpm_tune.training.resuming import resume


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with checkpoints at steps 4, 8 and 12."""
    trainer = Trainer(experiment_of())
    while not trainer.done:
        trainer.run_interval()
        trainer.save(next_folder(tmp_path, trainer.step))
    return tmp_path


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def test_a_whole_checkpoint_is_continued_without_a_word(run: Path) -> None:
    trainer = Trainer(experiment_of())
    assert resume(trainer, newest_first(run)) is None
    assert trainer.step == 12


def test_a_truncated_one_falls_back_to_the_one_before_and_says_so(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(next_folder(run, 12) / "weights.safetensors")
    trainer = Trainer(experiment_of())
    with caplog.at_level(logging.WARNING, "gpm_tune"):
        note = resume(trainer, newest_first(run))
    assert trainer.step == 8
    assert note is not None
    assert "step_000000012: the checkpoint is damaged: weights.safetensors has" in note
    assert note.endswith(f"continued from the one before, at step 8 in {next_folder(run, 8)}")
    assert note in caplog.text


def test_what_is_trained_after_falling_back_is_the_same(run: Path) -> None:
    expected = Trainer(experiment_of())
    expected.restore(next_folder(run, 12))
    truncate(next_folder(run, 12) / "state.pt")
    trainer = Trainer(experiment_of())
    resume(trainer, newest_first(run))
    assert trainer.run_interval() is not None
    assert expected.best is not None
    assert trainer.best is not None
    assert trainer.best.step == expected.best.step
    assert trainer.best.picture == expected.best.picture


def test_with_none_that_is_whole_the_run_starts_again(run: Path) -> None:
    for folder in newest_first(run):
        truncate(folder / "checkpoint.json")
    trainer = Trainer(experiment_of())
    note = resume(trainer, newest_first(run))
    assert trainer.step == 0
    assert note is not None
    assert note.count("no whole checkpoint is here") == 3
    assert note.endswith("started again from step 0")


def test_a_run_without_checkpoints_starts_without_a_word(tmp_path: Path) -> None:
    assert resume(Trainer(experiment_of()), newest_first(tmp_path)) is None
