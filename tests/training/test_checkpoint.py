"""Checkpoints: whole or refused, and free of pickles that run code."""

import json
import zipfile
from pathlib import Path

import pytest
from examples import experiment_of

from gpm_tune.errors import UserError
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.checkpoint import read_record


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = Trainer(experiment_of())
    trainer.run_interval()
    trainer.save(tmp_path)
    return tmp_path


def test_a_checkpoint_says_what_it_is(checkpoint: Path) -> None:
    record = read_record(checkpoint)
    assert record["step"] == 4
    assert record["best"]["step"] == 4
    assert Experiment.model_validate(record["experiment"]) == experiment_of()
    assert (checkpoint / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checkpoint.json"])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"damaged|no whole checkpoint"):
        Trainer(experiment_of()).restore(checkpoint)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole checkpoint is here"):
        Trainer(experiment_of()).restore(tmp_path)


def test_another_format_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(UserError, match="checkpoint format 99, this version reads 2"):
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
