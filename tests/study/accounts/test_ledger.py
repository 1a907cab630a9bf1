"""The ledger: every trial is asked once and told once, whatever happens in between."""

from typing import Any

import optuna
import pytest
from examples import POINTS, study_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import record, take

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.ledger import Ledger, Verdict
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import Study

METRIC = "sliced_wasserstein"


def measure(value: float) -> dict[str, float]:
    return {METRIC: value, "nfe": 4, "seconds": 1.0}


def test_the_first_trial_is_the_base_and_the_budget_is_kept(storage: str) -> None:
    ledger = Ledger(study_of(), storage)
    first = ledger.next()
    assert first is not None
    assert first.experiment == study_of().experiment
    rest = [take(ledger) for _ in range(3)]
    assert ledger.next() is None
    assert [first.number, *rest] == [0, 1, 2, 3]


def test_each_ending_is_what_optuna_has(storage: str) -> None:
    ledger = Ledger(study_of(), storage)
    for number, values in enumerate([[3.0, 1.0, 2.0], [5.0, 4.0], [7.0]]):
        assert take(ledger) == number
        for step, value in enumerate(values, start=1):
            ledger.report(number, step, measure(value))
    ledger.complete(0)
    ledger.prune(1)
    ledger.fail(2, "loss was nan")
    trials = optuna.load_study(study_name="small", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert trials[0].value == 1.0, "the best evaluation"
    assert trials[1].intermediate_values == {1: 5.0, 2: 4.0}
    assert record(storage).trials[2].reason == "loss was nan"
    assert [trial.number for trial in record(storage).ranked()] == [0, 1, 2]


def test_a_restart_continues_unfinished_trials_first_and_repeats_no_draw(storage: str) -> None:
    study = study_of(sampler={"name": "random", "seed": 0}, budget={"trials": 8})
    before = Ledger(study, storage)
    for number in range(4):
        assert take(before) == number
        before.report(number, 4, measure(1.0))
    before.keep_checkpoint(2, "somewhere/checkpoint")
    for number in (0, 1, 3):
        before.complete(number)
    values = {trial.number: trial.values for trial in record(storage).trials}
    after = Ledger(study, storage)
    assert after.remaining == 5
    resumed = after.next()
    assert resumed is not None
    assert (resumed.number, resumed.checkpoint, resumed.steps_done) == (2, "somewhere/checkpoint", 4)
    assert resumed.values == values[2]
    new = [after.next() for _ in range(4)]
    assert [assignment and assignment.number for assignment in new] == [4, 5, 6, 7]
    drawn = [repr(v) for v in values.values()] + [repr(a.values) for a in new if a]
    assert len(set(drawn)) == 8
    assert after.next() is None


def test_a_replayed_report_changes_nothing(storage: str) -> None:
    ledger = Ledger(study_of(), storage)
    number = take(ledger)
    ledger.report(number, 4, measure(2.0))
    ledger.report(number, 8, measure(1.0))
    before = record(storage)
    assert ledger.report(number, 4, measure(0.1)) is Verdict.GO_ON
    assert record(storage) == before


def test_a_larger_budget_adds_trials_to_a_finished_study(storage: str) -> None:
    for budget in (2, 5):
        ledger = Ledger(study_of(budget={"trials": budget}), storage)
        while (assignment := ledger.next()) is not None:
            ledger.report(assignment.number, 12, measure(1.0))
            ledger.complete(assignment.number)
        assert [trial.number for trial in record(storage).trials] == list(range(budget))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"experiment": space.put(POINTS, {"training.steps": 13})}, "experiment.training.steps"),
        ({"search": {"model.eta": {"float": [1.0, 9.0]}}}, "search.model.eta"),
        ({"objectives": [{"metric": "frechet"}]}, "objectives"),
    ],
)
def test_another_study_under_the_same_name_is_refused(
    storage: str, changes: dict[str, Any], named: str
) -> None:
    Ledger(study_of(), storage)
    with pytest.raises(UserError, match=f"exists already with other values of .*{named}"):
        Ledger(study_of(**changes), storage)


def test_asha_stops_the_worse_trials_at_their_rung() -> None:
    scheduler = {"name": "asha", "grace_steps": 4, "reduction_factor": 3}
    ledger = Ledger(study_of(scheduler=scheduler, budget={"trials": 9}), None)
    numbers = [take(ledger) for _ in range(9)]
    stopped = [ledger.report(number, 4, measure(float(value))) for value, number in enumerate(numbers)]
    assert stopped[0] is Verdict.GO_ON, "the best goes on"
    assert set(stopped[3:]) == {Verdict.STOP}, "what is not in the best third is stopped"
    assert all(ledger.report(0, step, measure(0.0)) is Verdict.GO_ON for step in (8, 12))


def test_maximised_objectives_keep_the_highest(storage: str) -> None:
    ledger = Ledger(study_of(objectives=[{"metric": "modes_covered", "mode": "max"}]), storage)
    for number, values in enumerate([[0.2, 0.8, 0.4], [0.6]]):
        take(ledger)
        for step, value in enumerate(values, start=1):
            ledger.report(number, step, {**measure(1.0), "modes_covered": value})
        ledger.complete(number)
    assert [(t.number, t.value) for t in record(storage).ranked()] == [(0, 0.8), (1, 0.6)]


ACTIONS = st.lists(st.sampled_from(["next", "report", "complete", "prune", "fail", "restart"]), max_size=25)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS, st.randoms(use_true_random=False))
def test_trials_asked_are_trials_told(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str], random: Any
) -> None:
    """Any order of events, with restarts in between: in the end each trial has one ending."""
    storage = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'optuna.db'}"
    study: Study = study_of(sampler={"name": "random"})
    ledger, live, endings = Ledger(study, storage), {}, {}
    for action in [*actions, "restart"]:
        if action == "restart":
            ledger, live = Ledger(study, storage), {}
        elif action == "next":
            assignment = ledger.next()
            if assignment:
                assert assignment.number not in live
                assert assignment.number not in endings
                live[assignment.number] = assignment.steps_done
        elif live:
            number = random.choice(list(live))
            if action == "report" or (action == "complete" and not live[number]):
                live[number] += 1
                ledger.report(number, live[number], measure(random.random()))
            else:
                end = {"complete": ledger.complete, "prune": ledger.prune}.get(action)
                end(number) if end else ledger.fail(number, "why")
                endings[number] = action
                del live[number]
    while (assignment := ledger.next()) is not None:
        assert assignment.number not in endings
        ledger.report(assignment.number, assignment.steps_done + 1, measure(1.0))
        ledger.complete(assignment.number)
        endings[assignment.number] = "complete"
    states = {trial.number: trial.state for trial in record(storage).trials}
    expected = {"complete": "complete", "prune": "pruned", "fail": "fail"}
    assert states == {number: expected[ending] for number, ending in endings.items()}
    assert len(states) == study.budget.trials
