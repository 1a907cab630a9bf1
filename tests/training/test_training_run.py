"""The folder of a training run: what is kept, found again, passed over and deleted, and where it lies."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import MODELS, TEACHER, experiment_of
from training_runs import (
    content,
    counted_steps,
    runs_at,
    scores,
    teacher_of,
    train,
    trained,
    training_of,
    values,
)

from gpm_tune import lease, locations
from gpm_tune.errors import UserError
from gpm_tune.training import Experiment, Objective, Trainer
from gpm_tune.training.run import EvaluationRecord, Runs, TrainingRun
from gpm_tune.training.teacher import given_teacher

QUICK = {"training__optimizer__lr": 0.01, "evaluation__samples": 50}
SHORT = experiment_of(**QUICK)  # 12 steps, evaluated every 4
FRECHET = Objective(metric="frechet", mode="min")


def steps(run: TrainingRun) -> list[int]:
    """Of a run's checkpoints."""
    return [int(place[-9:]) for place in run.checkpoints()]


def lasting(count: int, **changes: Any) -> Experiment:
    return experiment_of(**{**QUICK, "training__steps": count, **changes})


# What is kept


def test_the_newest_two_whole_checkpoints_are_kept_and_the_ends(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    for count, expected in ((8, [8, 4]), (20, [20, 16, 8]), (28, [28, 24, 20, 8])):
        assert steps(trained(lasting(count), runs)) == expected


def test_an_end_on_the_way_of_a_longer_training_is_kept_too(tmp_path: Path) -> None:
    """It is not trained to: its checkpoint is there already."""
    runs = runs_at(tmp_path)
    run = trained(lasting(20), runs)
    with counted_steps() as made:
        train(lasting(16), runs)
    assert made == []
    train(lasting(32), runs)
    assert steps(run) == [32, 28, 20, 16]
    assert run.saved(lasting(16), 16).load()


def test_the_last_weights_of_a_judge_are_kept_where_another_goes_on(tmp_path: Path) -> None:
    """Else the best ones of the first would be lost."""
    runs = runs_at(tmp_path)
    first = training_of(SHORT, runs).evaluations()
    assert next(first).step == 4
    first.close()
    longer, run = lasting(24), runs.of(SHORT)
    assert list(training_of(longer, runs, FRECHET).evaluations())
    assert steps(run) == [24, 20, 4]
    assert run.saved(longer, 4).load()


def test_of_equal_evaluations_the_first_is_the_best_as_for_training(tmp_path: Path) -> None:
    """Whose weights are kept."""
    runs, frozen = runs_at(tmp_path), experiment_of(training__optimizer__lr=1e-30)
    run = trained(frozen, runs)
    assert len({record.metrics["sliced_wasserstein"] for record in run.evaluations(frozen.judge())}) == 1
    assert run.best(frozen).step == 4


def test_a_run_is_deleted_with_its_last_user(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    for user in ("one", "other"):
        train(SHORT, runs, user=user)
    run = runs.of(SHORT)
    run.leave("a stranger")
    run.leave("one")
    run.leave("one")
    assert run.saved(SHORT).load()
    run.leave("other")
    assert runs.names() == []


def test_where_the_place_of_all_runs_is_away_none_is_begun(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    Path(runs.location).rmdir()
    with pytest.raises(FileNotFoundError, match="is not there"):
        train(SHORT, runs)
    assert not Path(runs.location).exists()


def test_a_fork_goes_on_with_a_copy_of_the_others_weights(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    donor = trained(SHORT, runs)
    before = content(donor)
    forks = [runs.forked(donor.name, 8, why) for why in ("trial 3", "trial 3", "trial 4")]
    assert len({fork.name for fork in forks}) == 2
    assert {fork.name.rpartition("-")[0] for fork in forks} == {donor.name.rpartition("-")[0]}
    assert forks[0].newest(99) == 8
    assert content(donor) == before
    with pytest.raises(UserError, match="step_000000004"):
        runs.forked(donor.name, 4, "trial 5")


def test_other_data_under_the_same_training_are_said(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    run = trained(SHORT, runs)
    assert run.note_of_other_data(SHORT) is None
    other = runs.named(f"{run.name[:-4]}0000")
    note = other.note_of_other_data(SHORT)
    assert note is not None
    assert f"have changed since {run.name} was trained: it is trained anew" in note


# What is damaged


@pytest.mark.parametrize("damage", ["[]", "", '{"step": 12}', "{"])
def test_the_last_evaluation_is_measured_again_where_it_is_damaged(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = runs_at(tmp_path)
    run = trained(SHORT, runs)
    expected = scores(run.evaluations(SHORT.judge()))
    file = Path(run.location) / "evaluations" / f"step_000000012-{SHORT.judge()}.json"
    file.write_text(damage)
    with counted_steps() as made, caplog.at_level(logging.WARNING, "gpm_tune"):
        found = scores(train(SHORT, runs))
    assert made == []
    assert f"{file} is damaged" in caplog.text
    assert found.keys() == expected.keys()
    for step, metrics in found.items():
        assert {name: expected[step][name] for name in metrics} == metrics
    assert EvaluationRecord.model_validate_json(file.read_text()).step == 12


def test_an_earlier_evaluation_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    """The weights of that step are gone."""
    runs = runs_at(tmp_path)
    run = trained(SHORT, runs)
    file = Path(run.location) / "evaluations" / f"step_000000004-{SHORT.judge()}.json"
    file.write_text("[]")
    with counted_steps() as made:
        assert [record.step for record in train(lasting(16), runs)] == [8, 12, 16]
    assert made == [13, 14, 15, 16]


def test_a_damaged_newest_checkpoint_is_trained_to_again(tmp_path: Path) -> None:
    runs, notes = runs_at(tmp_path), []
    run = trained(SHORT, runs)
    expected = content(run)
    weights = Path(run.checkpoint(12)) / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with counted_steps() as made:
        found = train(lasting(16), runs, on_note=notes.append)
    assert made == list(range(9, 17))
    (note,) = notes
    assert note.endswith(f"continued from the one before, at step 8 in {run.checkpoint(8)}")
    assert [record.step for record in found] == [4, 8, 12, 16]
    name = "checkpoints/step_000000012/weights.safetensors"
    assert content(run)[name] == expected[name]


def test_what_does_not_belong_to_a_run_disturbs_nothing(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    run = runs.of(SHORT)
    for name in ("checkpoints/.DS_Store", "evaluations/.DS_Store", "checkpoints/step_x/notes.txt"):
        locations.write(f"{run.location}/{name}", b"?")
    locations.write(f"{run.location}/evaluations/step_000000004-{SHORT.judge()}.json.7.partial", b"{")
    locations.write(f"{run.location}/experiment.yaml", b"mine")
    assert [record.step for record in train(SHORT, runs)] == [4, 8, 12]
    assert steps(run) == [12, 8]
    assert (Path(run.location) / "experiment.yaml").read_text() == "mine"
    assert (Path(run.location) / "checkpoints" / ".DS_Store").exists()


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    run = trained(SHORT, runs)
    file = Path(run.location) / "evaluations" / f"step_000000012-{SHORT.judge()}.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match=f"s a directory: .*{file.name}"):
        train(SHORT, runs)


# Buckets


@pytest.fixture
def in_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Where runs are kept, in a bucket that answers at once."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.5)
    return Runs(f"{bucket}/runs", tmp_path / "cache")


def test_runs_in_a_bucket_are_those_on_a_disk(in_bucket: Runs, tmp_path: Path) -> None:
    stopped = training_of(SHORT, in_bucket).evaluations()
    assert next(stopped).step == 4
    stopped.close()
    with counted_steps() as made:
        found = train(SHORT, in_bucket)
    assert made == list(range(5, 13))
    run, alone = in_bucket.of(SHORT), trained(SHORT, runs_at(tmp_path))
    assert scores(found) == scores(alone.evaluations(SHORT.judge()))
    assert steps(run) == [12, 8]
    locations.copy(run.location, str(tmp_path / "copy" / run.name))
    copied = Runs(str(tmp_path / "copy"), tmp_path).named(run.name)
    assert content(copied) == content(alone)
    with counted_steps() as made:
        assert list(training_of(SHORT, in_bucket, FRECHET).evaluations())
    assert made == []
    for step in (run.best(SHORT).step, 12):
        one, two = (place.saved(SHORT, step).load().state_dict() for place in (run, alone))
        assert all(torch.equal(one[name], two[name]) for name in one)
    run.leave("tests")
    assert in_bucket.names() == []


def test_a_checkpoint_that_was_written_again_is_fetched_again(in_bucket: Runs) -> None:
    run = trained(SHORT, in_bucket)
    first = run.saved(SHORT, 12).folder
    (first / "state.pt").rename(first / "kept")  # so that a second fetch shows
    assert run.here(run.checkpoint(12)) == first
    assert (first / "kept").exists()
    trainer = Trainer(SHORT)
    trainer.restore(run.here(run.checkpoint(8)))
    trainer.run_interval()
    trainer.seconds += 1
    run.keep_checkpoint(trainer)
    assert run.saved(SHORT, 12).record.seconds == trainer.seconds
    assert not (first / "kept").exists()


# Teachers


def student(teacher_steps: int = 12, **changes: Any) -> Experiment:
    teacher = {"experiment": {**TEACHER, "training": {"steps": teacher_steps, "batch_size": 16}}}
    return experiment_of(model={**MODELS["score_gan"], "teacher": teacher}, **changes)


def test_a_teacher_is_trained_once_for_two_students(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    one, other = (student(training__optimizer__lr=lr) for lr in (1e-3, 1e-4))
    assert one.teacher == other.teacher
    with counted_steps() as made:
        found = train(one, runs)
    assert made == [*range(1, 13)] * 2, "the teacher, then the student"
    with counted_steps() as made:
        assert scores(train(other, runs)) != scores(found)
    assert made == [*range(1, 13)]
    assert len(runs.names()) == 3
    with counted_steps() as made:
        train(one, runs)
    assert made == []


def test_students_of_a_teacher_that_was_trained_further_get_its_weights_of_then(tmp_path: Path) -> None:
    experiment = student()
    runs, teacher = runs_at(tmp_path / "one"), experiment.teacher
    assert teacher is not None
    before = teacher_of(experiment, tmp_path / "one")
    assert before is not None
    train(student(24).teacher, runs)  # type: ignore[arg-type]
    after = teacher_of(experiment, tmp_path / "one")
    assert after is not None
    assert after.step == before.step
    one, two = (saved.load().state_dict() for saved in (before, after))
    assert all(torch.equal(one[name], two[name]) for name in one)
    alone = train(experiment, runs_at(tmp_path / "alone"))
    assert scores(train(experiment, runs)) == scores(alone)


def test_a_checkpoint_of_a_runs_folder_serves_as_teacher(tmp_path: Path) -> None:
    runs = runs_at(tmp_path)
    run = trained(Experiment.model_validate(TEACHER), runs)
    given = {**MODELS["score_gan"], "teacher": {"checkpoint": run.checkpoint(12)}}
    experiment = experiment_of(model=given)
    saved = given_teacher(experiment)
    assert saved is not None
    assert saved.step == run.best(Experiment.model_validate(TEACHER)).step
    found, expected = train(experiment, runs)[-1], train(student(), runs)[-1]
    assert values(found.as_text()) == values(expected.as_text())


def test_a_run_whose_weights_are_gone_says_so(tmp_path: Path) -> None:
    run = trained(SHORT, runs_at(tmp_path))
    with pytest.raises(UserError, match=r"step_000000012: the weights of step 3 are no longer kept"):
        run.saved(SHORT, 3)
    file = Path(run.checkpoint(12)) / "checkpoint.json"
    assert json.loads(file.read_text())["is_end"] is True
