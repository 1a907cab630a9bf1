"""Checkpoints that are damaged in every way but a truncated file: the one before is taken, with a note."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import experiment_of
from safetensors.torch import load_file, save_file

from gpm_tune.errors import UserError
from gpm_tune.training import Trainer, checkpoint
from gpm_tune.training.loop import resume
from gpm_tune.training.run import Runs, TrainingRun
from gpm_tune.training.saved import SavedModel

EXPERIMENT = experiment_of(training__ema=0.9)


def vouch(folder: Path) -> None:
    """Let `checkpoint.json` vouch for the files as they are now."""
    file = folder / "checkpoint.json"
    record = json.loads(file.read_text())
    record["files"] = {name: checkpoint._fingerprint(folder / name).model_dump() for name in record["files"]}
    file.write_text(json.dumps(record))


def content(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "checkpoint.json").write_text(text) and None


def record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "checkpoint.json"
        plain = json.loads(file.read_text())
        change(plain)
        file.write_text(json.dumps(plain))

    return damage


def put(key: str, value: Any) -> Callable[[Path], None]:
    """Another value at a dotted key of `checkpoint.json`."""
    *parents, last = key.split(".", 1) if not key.startswith("files") else key.split(":")

    def change(plain: dict[str, Any]) -> None:
        for parent in parents:
            plain = plain[parent]
        plain[last] = value

    return record(change)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "weights.safetensors")
        vouch(folder)

    return damage


def state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = torch.load(folder / "state.pt", weights_only=True)
        replaced = change(found)
        torch.save(replaced if isinstance(replaced, list) else found, folder / "state.pt")
        vouch(folder)

    return damage


def first_of(group: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n, t in sorted(tensors.items()) if n.startswith(group) and t.ndim == 2)
        tensors[name] = value(tensors[name]).contiguous()

    return weights(change)


def folder_for(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def moments(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return state(lambda s: change(s["optimizers"]["flow"]["state"][0]))


BOTH = {  # what sampling notices, too
    **{f"json {text}": content(text) for text in ("[]", "null", "3", '"text"', "{}", "", "{", "[" * 5000)},
    "json NaN": content("NaN"),
    **{
        f"{key} {value!r}": put(key, value)
        for key, value in [
            ("step", "8"),
            ("step", 8.5),
            ("step", True),
            ("step", -1),
            ("step", None),
            ("step", 0),
            ("evaluated_step", [8]),
            ("evaluated_step", 10**6),
            ("seconds", "long"),
            ("seconds", float("nan")),
            ("joules", {}),
            ("is_end", 1),
            ("judge", None),
            ("data", 7),
            ("best", []),
            ("best", {"step": 8}),
            ("best.step", 9),
            ("best.curve", [1.0]),
            ("best.curve", {}),
            ("best.curve", {"many": {"sliced_wasserstein": 1.0}}),
            ("best.curve", {"4": {"sliced_wasserstein": "low"}}),
            ("best.scalars", {"seconds": float("inf")}),
            ("experiment", []),
            ("experiment", {}),
            ("format", "3"),
            ("files", {}),
            ("files", []),
            ("files:state.pt", {"size": 1}),
            ("files:other.bin", {"size": 1, "crc32": 1}),
            ("stepp", 8),
        ]
    },
    **{
        f"without {key}": record(lambda plain, key=key: plain.pop(key))
        for key in (
            "format",
            "files",
            "experiment",
            "data",
            "step",
            "evaluated_step",
            "seconds",
            "is_end",
            "judge",
            "best",
        )
    },
    **{
        f"a folder for {name}": folder_for(name)
        for name in ("checkpoint.json", "weights.safetensors", "state.pt")
    },
    "best weights not finite": first_of("best/", lambda t: t * float("nan")),
    "best weights of another shape": first_of("best/", lambda t: t[:, :-1]),
    "best weights of another kind": first_of("best/", lambda t: t.half()),
    "without the best weights": weights(
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("best/")]
    ),
    "a tensor more": weights(lambda tensors: tensors.update({"best/more": torch.zeros(1)})),
    "a tensor in no group": weights(lambda tensors: tensors.update({"more": torch.zeros(1)})),
}
CONTINUED = {  # what only continuing the run needs
    "last weights infinite": first_of("last/", lambda t: t + float("inf")),
    "average of another shape": first_of("average/", lambda t: t[:-1]),
    "without the average": weights(
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("average/")]
    ),
    "state a list": state(lambda _: [1]),
    "state empty": state(lambda s: s.clear()),
    **{f"state without {key}": state(lambda s, key=key: s.pop(key)) for key in ("rng", "means")},
    "optimizers empty": state(lambda s: s["optimizers"].clear()),
    "optimizer a number": state(lambda s: s["optimizers"].update(flow=3)),
    "optimizer of other parameters": state(
        lambda s: s["optimizers"]["flow"]["param_groups"][0].update(params=[0])
    ),
    "moments missing": moments(lambda m: m.pop("exp_avg")),
    "moments not finite": moments(lambda m: m["exp_avg_sq"].fill_(float("nan"))),
    "moments of another shape": moments(lambda m: m.update(exp_avg=torch.zeros(3))),
    "rng a number": state(lambda s: s.update(rng=3)),
    "rng of floats": state(lambda s: s.update(rng=torch.zeros(5056))),
    "rng of zeros": state(lambda s: s.update(rng=torch.zeros_like(s["rng"]))),
    "means a list": state(lambda s: s.update(means=[1.0])),
    "a mean of text": state(lambda s: s.update(means={"flow": ("a", 1)})),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints at steps 5 and 9; not to be changed."""
    run, trainer = run_in(tmp_path_factory.mktemp("trained")), Trainer(EXPERIMENT)
    for _ in range(2):
        trainer.run_interval()
        trainer.train_until(trainer.step + 1)  # so that there are running means
        run.keep_checkpoint(trainer)
    return Path(run.location)


def run_in(folder: Path) -> TrainingRun:
    return Runs(str(folder), folder / "cache").named("run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> TrainingRun:
    """A copy of that run."""
    shutil.copytree(trained, tmp_path / "run")
    return run_in(tmp_path)


@pytest.mark.parametrize("damage", [*BOTH.values(), *CONTINUED.values()], ids=[*BOTH, *CONTINUED])
def test_a_run_goes_on_from_the_one_before_with_a_note(
    run: TrainingRun, damage: Callable[[Path], None]
) -> None:
    damage(Path(run.checkpoint(9)))
    trainer = Trainer(EXPERIMENT)
    notes: list[str] = []
    assert resume(trainer, run, 12, notes.append)
    assert trainer.step == 5
    (note,) = notes
    assert run.checkpoint(9) in note
    assert note.endswith(f"continued from the one before, at step 5 in {run.checkpoint(5)}")


@pytest.mark.parametrize("damage", BOTH.values(), ids=[*BOTH])
def test_samples_are_of_the_one_before_with_a_note(
    run: TrainingRun, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(Path(run.checkpoint(9)))
    with caplog.at_level(logging.WARNING, "gpm_tune"):
        assert run.saved(EXPERIMENT).folder == Path(run.checkpoint(5))
    assert f"the one before is used: {run.checkpoint(5)}" in caplog.text
    with pytest.raises(UserError, match="checkpoint"):
        SavedModel.at(Path(run.checkpoint(9)), EXPERIMENT).load()


@pytest.mark.parametrize("damage", CONTINUED.values(), ids=[*CONTINUED])
def test_nothing_of_a_damaged_checkpoint_is_loaded(run: TrainingRun, damage: Callable[[Path], None]) -> None:
    damage(Path(run.checkpoint(9)))
    trainer, fresh = Trainer(EXPERIMENT), Trainer(EXPERIMENT)
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        trainer.restore(Path(run.checkpoint(9)))
    assert trainer.step == 0
    for one, two in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(trainer._rng.get_state(), fresh._rng.get_state())


def test_the_error_is_of_the_newest_where_none_can_be_loaded(run: TrainingRun) -> None:
    for place in run.checkpoints():
        (Path(place) / "checkpoint.json").write_text("[]")
    with pytest.raises(UserError, match="step_000000009: the checkpoint is damaged"):
        run.saved(EXPERIMENT)


def test_a_run_without_checkpoints_starts_without_a_word(tmp_path: Path) -> None:
    notes: list[str] = []
    trainer = Trainer(EXPERIMENT)
    assert resume(trainer, run_in(tmp_path), 12, notes.append)
    assert (trainer.step, notes) == (0, [])
    with pytest.raises(UserError, match="no checkpoint is here"):
        run_in(tmp_path).saved(EXPERIMENT)


def test_a_whole_checkpoint_is_continued_without_a_word(run: TrainingRun) -> None:
    notes: list[str] = []
    trainer = Trainer(EXPERIMENT)
    assert resume(trainer, run, 12, notes.append)
    assert (trainer.step, notes) == (9, [])


def test_with_none_that_is_whole_the_run_starts_again(run: TrainingRun) -> None:
    for place in run.checkpoints():
        file = Path(place) / "checkpoint.json"
        file.write_bytes(file.read_bytes()[:-10])
    notes: list[str] = []
    trainer = Trainer(EXPERIMENT)
    assert resume(trainer, run, 12, notes.append)
    assert trainer.step == 0
    (note,) = notes
    assert note.count("no whole checkpoint is here") == 2
    assert note.endswith("started again from step 0")


def test_what_is_kept_is_counted_from_the_checkpoint_just_written(run: TrainingRun) -> None:
    """Else those of a longer training, or damaged ones of a later step, would push out what replaces them."""
    for step in (5, 9):
        shutil.copytree(run.checkpoint(step), run.checkpoint(step + 100))
    trainer = Trainer(EXPERIMENT)
    trainer.restore(Path(run.checkpoint(9)))
    run.keep_checkpoint(trainer)
    assert [int(place[-9:]) for place in run.checkpoints()] == [109, 105, 9, 5]
