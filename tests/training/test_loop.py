"""The loop that trains a run: wherever it is stopped, and whoever goes on, the run comes out the same."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import MODELS, experiment_of
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import (
    content,
    counted_steps,
    runs_at,
    scores,
    train,
    trained,
    training_of,
    values,
)

from gpm_tune import lease as lease_module
from gpm_tune import locations
from gpm_tune.lease import Lease, LeaseLostError
from gpm_tune.training import Experiment, Objective, Trainer, checkpoint
from gpm_tune.training.run import EvaluationRecord, Runs, TrainingRun

QUICK = {"training__optimizer__lr": 0.01, "training__ema": 0.9, "evaluation__samples": 50}
SHORT = experiment_of(**QUICK)  # 12 steps, evaluated every 4
TINY = experiment_of(**QUICK, training__steps=3, evaluation__every=1, evaluation__nfe=[])
NONCE = "a" * 32  # of the lease of a process that is lost
EDM = {"model": MODELS["edm"], **QUICK}


def edm(rho: float = 7.0, **changes: Any) -> Experiment:
    """An EDM, by an inference-only key."""
    return experiment_of(**{**EDM, "model__sampling_noise__rho": rho, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return trained(SHORT, runs_at(tmp_path_factory.mktemp("undisturbed")))


class Stop:
    """Asks a training to stop at a step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._trainer: Trainer | None = None

    def watch(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __call__(self) -> bool:
        return self._trainer is not None and self._trainer.step >= self._step


def train_to(
    step: int, experiment: Experiment, runs: Runs, objective: Objective | None = None
) -> list[EvaluationRecord]:
    """Train until asked to stop at a step."""
    stop = Stop(step)
    training = training_of(experiment, runs, objective, should_stop=stop, check=stop.watch)
    return list(training.evaluations())


# Stopped, killed


@settings(max_examples=12)
@given(stops=st.lists(st.integers(0, 12), max_size=4))
def test_a_run_stopped_at_any_steps_comes_out_as_an_undisturbed_one(
    undisturbed: TrainingRun, tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    runs = runs_at(tmp_path_factory.mktemp("stopped"))
    seen: list[EvaluationRecord] = []
    for step in (*sorted(stops), 99):
        torch.manual_seed(step)  # whatever the next process's global random state is
        stop = Stop(step)
        training = training_of(SHORT, runs, should_stop=stop, check=stop.watch)
        seen += training.evaluations(seen[-1].step if seen else -1)
    assert scores(seen) == scores(undisturbed.evaluations(SHORT.judge()))
    assert [record.step for record in seen] == [4, 8, 12]
    expected, found = content(undisturbed), content(runs.of(SHORT))
    between = {name for name in {*expected, *found} if name.startswith("checkpoints/")}
    between -= {name for name in between if "step_000000012" in name}
    assert without(found, between) == without(expected, between)


def without(files: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: found for name, found in files.items() if name not in names}


class Kill(BaseException):
    """Stands for the end of the process: nothing handles it."""


@contextmanager
def killed_at(place: int) -> Iterator[list[str]]:
    """Let the process end before it changes something for the place-th time; gives the changes made."""
    made: list[str] = []

    def watched(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keys: Any) -> Any:
            if len(made) == place:
                raise Kill
            made.append(name)
            return change(*arguments, **keys)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, names in (
            (locations, ("write", "send", "copy", "delete", "delete_file")),
            (checkpoint.torch, ("save",)),
            (Path, ("write_bytes", "write_text", "replace", "unlink")),
        ):
            for name in names:
                patch.setattr(owner, name, watched(name, getattr(owner, name)))
        yield made


def killed_and_gone_on_with(
    experiment: Experiment, runs: Runs, place: int
) -> tuple[bool, list[EvaluationRecord]]:
    """Train in a process that is killed at a place, if it gets there, and in one that takes over."""
    run, seen = runs.of(experiment), []

    def go_on(**asker: Any) -> None:
        for record in training_of(experiment, runs, **asker).evaluations(seen[-1].step if seen else -1):
            assert run.newest(99) >= record.step, "what is told has its checkpoint"
            seen.append(record)

    try:
        with killed_at(place):
            go_on(nonce=NONCE)
    except Kill:
        go_on(predecessors=[NONCE])
        return True, seen
    return False, seen


def test_a_run_killed_between_any_two_writes_comes_out_as_an_undisturbed_one(tmp_path: Path) -> None:
    expected = trained(TINY, runs_at(tmp_path / "undisturbed"))
    place, is_killed = 0, True
    while is_killed:
        runs = runs_at(tmp_path / str(place))
        is_killed, seen = killed_and_gone_on_with(TINY, runs, place)
        assert [record.step for record in seen] == [1, 2, 3]
        assert scores(seen) == scores(expected.evaluations(TINY.judge()))
        assert_same_but_for_leftovers(runs.of(TINY), expected)
        place += 1
    assert place > 20, "there are so many places"


def assert_same_but_for_leftovers(run: TrainingRun, expected: TrainingRun) -> None:
    """A process killed after its last checkpoint leaves its lease, and older checkpoints, to who goes on."""
    found, wanted = content(run), content(expected)
    assert {name: found.get(name) for name in wanted} == wanted
    left = {name.split("/")[0] for name in {*found} - {*wanted}}
    assert left <= {"lease.json", "checkpoints"}


@pytest.mark.parametrize("left", ["checkpoint.json", "weights.safetensors", "state.pt"])
def test_a_checkpoint_that_is_half_deleted_is_no_checkpoint(tmp_path: Path, left: str) -> None:
    runs = runs_at(tmp_path)
    train_to(8, SHORT, runs)
    run = runs.of(SHORT)
    for file in Path(run.checkpoint(4)).iterdir():
        if file.name != left:
            file.unlink()
    assert run.newest(7) == -1
    with counted_steps() as steps:
        train(SHORT, runs)
    assert steps == [9, 10, 11, 12]
    assert [int(place[-9:]) for place in run.checkpoints()] == [12, 8]


def test_a_disk_that_is_full_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    runs, write = runs_at(tmp_path), checkpoint.write
    calls: list[int] = []

    def full(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "no space left on device")
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        with pytest.raises(OSError, match="no space"):
            train(SHORT, runs)
    with counted_steps() as steps:
        assert [record.step for record in train(SHORT, runs)] == [4, 8, 12]
    assert steps == list(range(5, 13))


# More steps, fewer steps


def test_a_longer_training_continues_a_finished_one(tmp_path: Path) -> None:
    longer = SHORT.model_copy(update={"training": SHORT.training.model_copy(update={"steps": 20})})
    runs = runs_at(tmp_path / "continued")
    train(SHORT, runs)
    with counted_steps() as steps:
        found = train(longer, runs)
    assert steps == list(range(13, 21))
    alone = trained(longer, runs_at(tmp_path / "alone"))
    assert scores(found) == scores(alone.evaluations(longer.judge()))
    run = runs.of(longer)
    assert run.name == runs.of(SHORT).name
    assert [int(place[-9:]) for place in run.checkpoints()] == [20, 16, 12], "12 was an end"
    ends = [{k: v for k, v in content(one).items() if "step_000000020" in k} for one in (run, alone)]
    assert ends[0] == ends[1]
    assert run.saved(SHORT).step <= 12
    with counted_steps() as steps:
        assert [record.step for record in train(SHORT, runs)] == [4, 8, 12]
    assert steps == []


def test_a_shorter_training_leaves_the_longer_ones_checkpoints_alone(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    longer = experiment_of(**QUICK, training__steps=20)
    run = trained(longer, runs)
    before = content(run)
    shorter = experiment_of(**QUICK, training__steps=8)
    with counted_steps() as steps:
        assert [record.step for record in train(shorter, runs)] == [4, 8]
    assert steps == list(range(1, 9))
    after = content(run)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after if name.startswith("checkpoints/")} == {
        f"step_{step:09d}" for step in (4, 8, 16, 20)
    }
    assert run.saved(shorter).step <= 8
    with counted_steps() as steps:
        train(longer, runs)
    assert steps == []


# Others' judges


def test_a_grid_of_samplers_is_one_training(tmp_path: Path) -> None:
    """Evaluated at the end, each has bit for bit the scores of a training of its own."""
    grid = [
        edm(3.0, evaluation__every=12),
        edm(7.0, evaluation__every=12),
        edm(7.0, evaluation__every=12, model__solver={"name": "euler"}, model__sampling_steps=6),
        edm(7.0, evaluation__every=12, evaluation__nfe=[1, 3], evaluation__samples=70),
    ]
    runs = runs_at(tmp_path / "shared")
    with counted_steps() as steps:
        found = [train(experiment, runs) for experiment in grid]
    assert steps == list(range(1, 13))
    assert len(runs.names()) == 1
    for index, (experiment, records) in enumerate(zip(grid, found, strict=True)):
        (alone,) = train(experiment, runs_at(tmp_path / f"alone {index}"))
        (record,) = records
        expected = {k: v for k, v in values(alone.as_text()).items() if not k.startswith("loss/")}
        assert {k: record.as_text()[k] for k in expected} == expected
        saved = runs.of(experiment).best(experiment)
        assert (saved.experiment, saved.step) == (experiment, 12)
    assert len({record.metrics["sliced_wasserstein"] for (record,) in found}) == 4


@pytest.mark.parametrize("ema", [0.9, None])
def test_who_shares_a_run_measures_its_best_and_last_weights(tmp_path: Path, ema: float | None) -> None:
    """The best one is in the middle: then both the best and the last are weights of their own steps."""
    lr = {"training__optimizer__lr": 0.3, "training__ema": ema}
    first, other = (edm(rho, **lr, evaluation__nfe=[]) for rho in (7.0, 3.0))
    runs = runs_at(tmp_path)
    records = train(first, runs)
    best = min(records, key=lambda record: record.metrics["sliced_wasserstein"]).step
    with counted_steps() as steps:
        found = train(other, runs)
    assert steps == []
    assert [record.step for record in found] == sorted({best, 12})
    run = runs.of(other)
    for step in {best, 12}:
        assert_weights(run, other, step)
    assert run.best(first).step == best
    with pytest.raises(Exception, match="no longer kept"):
        run.saved(other, 3)


def assert_weights(run: TrainingRun, experiment: Experiment, step: int) -> None:
    """That a run has the weights that training alone has at a step."""
    alone = Trainer(experiment)
    alone.train_until(step)
    saved = run.saved(experiment, step)
    assert saved.step == step
    expected, found = alone.evaluated_model.state_dict(), saved.load().state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_objective_is_another_judge(tmp_path: Path) -> None:
    """Who trained first keeps its evaluations, and its weights, when another goes on."""
    runs, judged = runs_at(tmp_path), Objective(metric="frechet", mode="min")
    train_to(8, SHORT, runs)
    run, own, others = runs.of(SHORT), SHORT.judge(), SHORT.judge(judged)
    assert own != others
    before = {name: found for name, found in content(run).items() if own in name}
    with counted_steps() as steps:
        found = list(training_of(SHORT, runs, judged).evaluations())
    assert steps == [9, 10, 11, 12]
    assert {name: found for name, found in content(run).items() if own in name} == before
    assert [record.step for record in run.evaluations(own)] == [4, 8]
    assert found == run.evaluations(others)
    assert [record.step for record in found][-2:] == [8, 12]
    with counted_steps() as steps:
        measured = train(SHORT, runs)
    assert steps == []
    assert {4, 8, 12} == {record.step for record in measured}
    assert run.best(SHORT).load()


def test_who_goes_on_with_another_judge_may_be_killed_anywhere(tmp_path: Path) -> None:
    first, other = (edm(rho, training__steps=3, evaluation__every=1) for rho in (7.0, 3.0))

    def begun(name: str) -> Runs:
        runs = runs_at(tmp_path / name)
        train_to(2, first, runs)
        return runs

    expected = begun("expected")
    train(other, expected)
    place, is_killed = 0, True
    while is_killed:
        runs = begun(str(place))
        is_killed, _ = killed_and_gone_on_with(other, runs, place)
        assert_same_but_for_leftovers(runs.of(other), expected.of(other))
        place += 1
    assert place > 10


# Leases


def test_a_run_that_another_process_took_over_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = runs_at(tmp_path)
    records = training_of(SHORT, runs, nonce=NONCE).evaluations()
    assert next(records).step == 4
    run, now = runs.of(SHORT), lease_module.CLOCK.now
    Lease(f"{run.location}/lease.json", "another", predecessors=[NONCE]).acquire(True, bool, print)
    before = content(run)
    monkeypatch.setattr(lease_module.CLOCK, "now", lambda: now() + lease_module.STALE_SECONDS)
    with pytest.raises(LeaseLostError, match="the lease went to another"):
        next(records)
    assert content(run) == before


def test_who_waits_for_a_run_can_be_stopped(tmp_path: Path) -> None:
    runs, told = runs_at(tmp_path), []
    run = runs.of(SHORT)
    run.create(SHORT, "another")
    with Lease(f"{run.location}/lease.json", "another").held():
        assert train(SHORT, runs, on_wait=told.append, should_stop=lambda: bool(told)) == []
    assert len(told) == 1
    assert told[0].startswith("another (process")
