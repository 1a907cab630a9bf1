"""Checkpoints: whole or refused, and free of pickles that run code."""

import json
import os
import zipfile
from pathlib import Path

import pytest
from examples import experiment_of

from gpm_tune.errors import UserError
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.checkpoint import is_whole, read_record


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = Trainer(experiment_of())
    trainer.run_interval()
    trainer.save(tmp_path)
    return tmp_path


def test_a_checkpoint_says_what_it_is(checkpoint: Path) -> None:
    record = read_record(checkpoint)
    assert record.step == 4
    assert record.best is not None
    assert record.best.step == 4
    assert Experiment.model_validate(record.experiment) == experiment_of()
    assert not record.is_end
    assert record.judge == experiment_of().judge()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_its_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    trainer = Trainer(experiment_of())
    trainer.run_interval()
    before = os.umask(umask)
    try:
        trainer.save(tmp_path / "made")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "made").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checkpoint.json"])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"damaged|no whole checkpoint"):
        Trainer(experiment_of()).restore(checkpoint)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
def test_a_byte_that_changed_is_found(checkpoint: Path, name: str) -> None:
    content = bytearray((checkpoint / name).read_bytes())
    content[-100] ^= 1
    (checkpoint / name).write_bytes(content)
    assert is_whole(checkpoint), "that look is at sizes only"
    with pytest.raises(UserError, match=f"{name} is not what was written"):
        Trainer(experiment_of()).restore(checkpoint)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checkpoint.json"])
def test_a_folder_that_is_half_written_is_no_checkpoint(checkpoint: Path, name: str) -> None:
    assert is_whole(checkpoint)
    (checkpoint / name).unlink()
    assert not is_whole(checkpoint)


def test_a_write_that_is_cut_short_leaves_no_checkpoint_of_before(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("gpm_tune.training.checkpoint.torch.save", full)
    with pytest.raises(OSError, match="no space"):
        Trainer(experiment_of()).save(checkpoint)
    assert not is_whole(checkpoint)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole checkpoint is here"):
        Trainer(experiment_of()).restore(tmp_path)


def test_another_format_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(UserError, match="checkpoint format 99, this version reads 4: it was written"):
        Trainer(experiment_of()).restore(checkpoint)


def test_a_state_that_would_run_code_is_refused(checkpoint: Path) -> None:
    """weights_only loading: a pickle that calls a function does not load."""
    state = checkpoint / "state.pt"
    with zipfile.ZipFile(state) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(name for name in files if name.endswith("data.pkl"))
    files[pickled] = b"cbuiltins\nprint\n(S'run'\ntR."
    with zipfile.ZipFile(state, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="damaged"):
        Trainer(experiment_of()).restore(checkpoint)
