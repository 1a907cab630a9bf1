"""Views of runs: pure functions of the records, whose points only grow."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from examples import POINTS, study_of
from hypothesis import given
from hypothesis import strategies as st
from managers import record, take

from gpm_tune.study.accounts.records import StudyRecord, TrialRecord
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.tracking.views import STATUSES, Point, View, single_view, study_view, trial_view
from gpm_tune.training import Experiment, Objective
from gpm_tune.training.objectives import Measured
from gpm_tune.training.run import EvaluationRecord

METRIC = "sliced_wasserstein"
EXPERIMENT = Experiment.model_validate(POINTS)
MODES = {METRIC: "min", "nfe": "min", "modes_covered": "max"}
ENDED = ("complete", "pruned", "infeasible", "fail")


def measured_at(step: int, time: int, curve: dict[int, float], **scalars: float) -> EvaluationRecord:
    return EvaluationRecord(
        step=step,
        judge="",
        time=time,
        machine="",
        user="",
        version="1.2.3",
        curve={nfe: {METRIC: value} for nfe, value in curve.items()},
        scalars=scalars,
    )


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
scored = st.floats(-4, 4, width=16)


@st.composite
def evaluations(draw: st.DrawFn) -> list[EvaluationRecord]:
    gaps = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=8))
    found, step, time = [], 0, 1000
    for more_steps, later in gaps:
        step, time = step + more_steps, time + later
        found.append(measured_at(step, time, {2: draw(numbers), 4: draw(numbers)}, loss=draw(numbers)))
    return found


@st.composite
def studies(draw: st.DrawFn) -> StudyRecord:
    """Studies whose trials end in any order, several of them at once."""
    metrics = draw(st.permutations(list(MODES)))[: draw(st.integers(1, 3))]
    objectives = [Objective(metric=name, mode=MODES[name]) for name in metrics]
    trials = []
    for number in range(draw(st.integers(0, 7))):
        state = draw(st.sampled_from([*ENDED, "running", "interrupted"]))
        values: dict[str, float] = {}
        if draw(st.booleans()):
            values = {name: draw(scored) for name in MODES} | {"nfe": draw(st.integers(1, 4))}
        trials.append(
            trial(
                number,
                state,
                scores=[values[goal.metric] for goal in objectives] if values else None,
                measured=of(values) if values else None,
                best_step=draw(st.integers(1, 9)) if values else None,
                feasible=state != "infeasible" and draw(st.booleans()),
                ended=100 + draw(st.integers(0, 5)) if state in ENDED else None,
            )
        )
    return StudyRecord(
        "small", "0" * 32, objectives, None, POINTS, [], 0.0, 0.0, trials, data_fingerprint="abc"
    )


def of(values: dict[str, float]) -> Measured:
    """What was measured, of these values by name."""
    metrics = {name: value for name, value in values.items() if name != "nfe"}
    return Measured(curve={int(values["nfe"]): metrics}, scalars={})


def trial(number: int, state: str, **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "values": {},
        "scores": None,
        "measured": None,
        "best_step": None,
        "feasible": True,
        "step": 0,
        "seconds": 0.0,
        "reason": None,
        "forked_from": None,
        "confirms": None,
        "started": 50 + number,
    }
    return TrialRecord(number=number, state=state, **{**fields, **changes})


def of_trial(
    record: TrialRecord, found: Sequence[EvaluationRecord], *, mode: Any = "min", **options: Any
) -> View:
    goals = [Objective(metric=METRIC, mode=mode)]
    study = StudyRecord(
        "small", "0" * 32, goals, None, POINTS, [], 0.0, 0.0, [record], data_fingerprint="abc"
    )
    return trial_view(study, record, EXPERIMENT, found, {}, **options)


def of_study(record: StudyRecord, *, is_running: bool = False) -> View | None:
    return study_view(record, EXPERIMENT, is_running=is_running, environment={"gpm.torch": "2"}, files={})


def texts(points: Sequence[Point]) -> list[str]:
    """Points, such that one NaN is like another."""
    return [repr(point) for point in points]


def named(view: View, name: str) -> list[Point]:
    return [point for point in view.points if point.name == name]


@given(
    evaluations(),
    st.integers(0, 8),
    st.sampled_from(["running", "interrupted"]),
    st.sampled_from(sorted(STATUSES)),
)
def test_more_evaluations_extend_the_points_of_fewer(
    found: list[EvaluationRecord], count: int, before: str, after: str
) -> None:
    fewer, more = of_trial(trial(3, before), found[:count]), of_trial(trial(3, after, ended=9**9), found)
    assert texts(more.points)[: len(fewer.points)] == texts(fewer.points)
    assert len({(point.name, point.time, point.step) for point in more.points}) == len(more.points)


@given(evaluations(), st.sampled_from(["min", "max"]), st.sampled_from(sorted(STATUSES)))
def test_a_trial_shows_all_that_was_measured_its_best_and_that_ones_curve(
    found: list[EvaluationRecord], mode: Any, state: str
) -> None:
    view, goal = of_trial(trial(3, state), found, mode=mode), Objective(metric=METRIC, mode=mode)
    for evaluation in found:
        at = [
            point for point in view.points if (point.time, point.step) == (evaluation.time, evaluation.step)
        ]
        shown = {
            point.name: point.value for point in at if not point.name.startswith(("best/", f"{METRIC}_"))
        }
        low, high = (evaluation.curve[nfe][METRIC] for nfe in (2, 4))
        expected = {METRIC: high, f"{METRIC}/nfe_2": low, f"{METRIC}/nfe_4": high, "nfe": 4.0}
        assert shown == expected | evaluation.scalars
    leading = []
    for evaluation in found:
        value = evaluation.metrics[METRIC]
        if all(goal.better(value, other.metrics[METRIC]) for other in leading):
            leading.append(evaluation)
    expected = [(e.metrics[METRIC], e.time, e.step) for e in leading]
    assert [(p.value, p.time, p.step) for p in named(view, f"best/{METRIC}")] == expected
    assert [(p.time, p.step) for p in named(view, "best/nfe")] == [(e.time, e.step) for e in leading]
    curve = named(view, f"{METRIC}_by_nfe")
    if leading and state in ("complete", "pruned", "infeasible"):
        best = leading[-1]
        assert [point.step for point in curve] == [2, 4]
        assert {point.time for point in curve} == {best.time}
        assert repr([p.value for p in curve]) == repr([best.curve[nfe][METRIC] for nfe in (2, 4)])
    else:
        assert not curve


@given(studies(), st.integers(100, 106))
def test_trials_that_end_later_extend_the_points_of_a_study(record: StudyRecord, now: int) -> None:
    """What is known at a time, when some trials had not ended yet, stays as it was."""
    earlier = [
        dataclasses.replace(found, state="running", ended=None) if (found.ended or 0) > now else found
        for found in record.trials
    ]
    before, after = of_study(dataclasses.replace(record, trials=earlier)), of_study(record)
    if before is None or after is None:
        assert not record.trials, "a study is shown once it has a trial"
        return
    assert texts(after.points)[: len(before.points)] == texts(before.points)
    assert len({(point.name, point.step) for point in after.points}) == len(after.points)
    assert [p.step for p in named(after, "best/nfe")] == sorted(p.step for p in named(after, "best/nfe"))


@given(studies())
def test_a_study_shows_the_same_best_as_its_records(record: StudyRecord) -> None:
    view = of_study(record)
    if view is None:
        return
    best = next(iter(record.ranked()), None)
    tagged = view.tags["gpm.best_trial"], view.tags["gpm.best_step"]
    assert tagged == ((str(best.number), str(best.best_step)) if best else ("none", "none"))
    ended = dataclasses.replace(record, trials=[t for t in record.trials if t.ended is not None])
    last = next(iter(ended.ranked()), None)
    for name in (goal.metric for goal in record.objectives):
        points = named(view, f"best/{name}")
        assert len(points) == sum(trial.scores is not None for trial in ended.trials)
        if points:
            expected = Objective(metric=name).value_of(last.measured) if last else math.nan
            assert repr(points[-1].value) == repr(expected)


@pytest.mark.parametrize(
    ("states", "is_running", "status"),
    [
        (["complete", "pruned"], False, "FINISHED"),
        (["complete", "interrupted"], False, "KILLED"),
        (["running"], False, "KILLED"),
        (["complete", "running"], True, "RUNNING"),
    ],
)
def test_a_study_ends_as_its_trials_say(states: list[str], is_running: bool, status: str) -> None:
    trials = [trial(n, state, ended=200 if state in ENDED else None) for n, state in enumerate(states)]
    goals = [Objective(metric=METRIC, mode="min")]
    record = StudyRecord("small", "0" * 32, goals, None, POINTS, [], 0.0, 0.0, trials, data_fingerprint="abc")
    view = of_study(record, is_running=is_running)
    assert view is not None
    assert (view.status, view.started) == (status, 50)
    assert (view.ended is None) == is_running
    assert view.tags["gpm.torch"] == "2"
    assert view.tags["gpm.data_fingerprint"] == "abc"
    assert (view.parent, view.tags["gpm.study"]) == (None, "small")


def test_a_trials_run_has_its_records_as_tags_and_its_experiment_as_params_and_file() -> None:
    pruned = trial(
        3,
        "pruned",
        run="points-12",
        note="damaged",
        reason="too slow",
        forked_from="trial 1, step 4",
        gpus=["H200", "L4"],
        scores=[2.0],
        best_step=8,
        ended=90,
    )
    view = of_trial(pruned, [measured_at(4, 77, {4: 2.0})], is_registered=True)
    assert (
        view.tags.items()
        >= {
            "gpm.study": "small",
            "gpm.trial": "3",
            "gpm.state": "pruned",
            "gpm.training_run": "points-12",
            "gpm.note": "damaged",
            "gpm.reason": "too slow",
            "gpm.forked_from": "trial 1, step 4",
            "gpm.gpu": "L4",
            "gpm.data_fingerprint": "abc",
            "gpm.model": "discr_flow",
            "gpm.version": "1.2.3",
        }.items()
    )
    assert (view.key, view.parent, view.name) == (f"{'0' * 32}/0003", "0" * 32, "trial 3")
    assert (view.started, view.ended, view.status) == (53, 90, "FINISHED")
    assert (
        view.params == yaml.safe_load(view.files["experiment.yaml"]()) == EXPERIMENT.model_dump(mode="json")
    )
    (version,) = view.versions
    assert version.model == "small"
    assert version.tags == {"trial": "3", "step": "8", "metric": METRIC, "value": "2.0"}


def test_a_run_that_was_interrupted_ended_at_its_last_evaluation() -> None:
    found = [measured_at(4, 1004, {4: 2.0}), measured_at(8, 1008, {4: 3.0})]
    view = of_trial(trial(3, "interrupted"), found)
    assert (view.status, view.ended) == ("KILLED", 1008)
    assert of_trial(trial(3, "interrupted"), []).ended == 53
    assert of_trial(trial(3, "running"), found).ended is None


@pytest.mark.parametrize("state", ["running", "complete", "interrupted", "fail"])
def test_an_experiment_alone_is_shown_as_a_trial_would_be(state: str) -> None:
    found = [measured_at(4, 1004, {2: 3.0, 4: 2.0})]
    options: Any = {"started": 53, "data_fingerprint": "abc", "run": "points-12", "note": "damaged"}
    view = single_view(EXPERIMENT, "points", "12", found, state, {}, **options)
    of_the_trial = of_trial(trial(3, state, run="points-12", note="damaged"), found)
    assert (view.key, view.name, view.parent) == ("12", "points-12", None)
    for field in ("started", "ended", "status", "params", "points"):
        assert getattr(view, field) == getattr(of_the_trial, field)
    of_studies = ("gpm.study", "gpm.trial")
    assert view.tags == {name: text for name, text in of_the_trial.tags.items() if name not in of_studies}


@given(evaluations())
def test_a_digest_tells_views_apart_and_the_same_alike(found: list[EvaluationRecord]) -> None:
    one, same, other = (of_trial(trial(3, s), found) for s in ("complete", "complete", "interrupted"))
    assert one.digest(one.marks(), "a") == same.digest(same.marks(), "a")
    for view, parent in ((other, "a"), (one, "b"), (dataclasses.replace(one, tags={}), "a")):
        assert view.digest(view.marks(), parent) != one.digest(one.marks(), "a")
    changed = [
        dataclasses.replace(one, files={"study.yaml": lambda text=text: text}) for text in (b"1", b"2")
    ]
    assert changed[0].digest(changed[0].marks(), "a") != changed[1].digest(changed[1].marks(), "a")


def test_the_storage_knows_when_a_trial_began_and_ended(storage: str) -> None:
    before = time.time_ns() // 1_000_000
    manager = TrialManager(study_of(), storage)
    number = take(manager)
    (found,) = record(storage).trials
    assert before <= found.started <= time.time_ns() // 1_000_000
    assert found.ended is None
    manager.fail(number, "diverged")
    (found,) = record(storage).trials
    assert found.ended is not None
    assert before <= found.started <= found.ended <= time.time_ns() // 1_000_000
