"""The trial manager: every trial is asked once and told once, whatever happens in between."""

from typing import Any

import optuna
import pytest
from examples import MODELS, POINTS, measured, study_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from managers import record, take

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import read_study, study_names
from gpm_tune.study.accounts.trial_manager import Decision, TrialManager, TrialSpec
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import StudyConfig

METRIC = "sliced_wasserstein"


def test_the_first_trial_is_the_base_and_the_budget_is_kept(storage: str) -> None:
    manager = TrialManager(study_of(), storage)
    first = manager.next()
    assert first is not None
    assert first.experiment == study_of().experiment
    rest = [take(manager) for _ in range(3)]
    assert manager.next() is None
    assert [first.number, *rest] == [0, 1, 2, 3]


def test_each_ending_is_what_optuna_has(storage: str) -> None:
    manager = TrialManager(study_of(), storage)
    for number, values in enumerate([[3.0, 1.0, 2.0], [5.0, 4.0], [7.0]]):
        assert take(manager) == number
        for step, value in enumerate(values, start=1):
            manager.report(number, step, measured(value))
    manager.complete(0)
    manager.prune(1)
    manager.fail(2, "loss was nan")
    trials = optuna.load_study(study_name="small", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert trials[0].value == 1.0, "the best evaluation"
    assert trials[1].intermediate_values == {1: 5.0, 2: 4.0}
    assert record(storage).trials[2].reason == "loss was nan"
    assert [trial.number for trial in record(storage).ranked()] == [0, 1, 2]


def test_a_restart_continues_unfinished_trials_first_and_repeats_no_draw(storage: str) -> None:
    study = study_of(sampler={"name": "random", "seed": 0}, budget={"trials": 8})
    before = TrialManager(study, storage)
    for number in range(4):
        assert take(before) == number
        before.report(number, 4, measured(1.0))
    for number in (0, 1, 3):
        before.complete(number)
    values = {trial.number: trial.values for trial in record(storage).trials}
    after = TrialManager(study, storage)
    assert after.remaining == 5
    resumed = after.next()
    assert resumed is not None
    assert (resumed.number, resumed.known_step) == (2, 4)
    assert resumed.values == values[2]
    new = [after.next() for _ in range(4)]
    assert [spec and spec.number for spec in new] == [4, 5, 6, 7]
    drawn = [repr(v) for v in values.values()] + [repr(a.values) for a in new if a]
    assert len(set(drawn)) == 8
    assert after.next() is None


def test_a_replayed_report_changes_nothing(storage: str) -> None:
    manager = TrialManager(study_of(), storage)
    number = take(manager)
    manager.report(number, 4, measured(2.0))
    manager.report(number, 8, measured(1.0))
    before = record(storage)
    assert manager.report(number, 4, measured(0.1)) is Decision.CONTINUE
    assert record(storage) == before


def test_a_larger_budget_adds_trials_to_a_finished_study(storage: str) -> None:
    for budget in (2, 5):
        manager = TrialManager(study_of(budget={"trials": budget}), storage)
        while (spec := manager.next()) is not None:
            manager.report(spec.number, 12, measured(1.0))
            manager.complete(spec.number)
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
    TrialManager(study_of(), storage)
    with pytest.raises(UserError, match=f"exists already with other values of .*{named}"):
        TrialManager(study_of(**changes), storage)


def test_asha_stops_the_worse_trials_at_their_rung() -> None:
    scheduler = {"name": "asha", "grace_steps": 4, "reduction_factor": 3}
    manager = TrialManager(study_of(scheduler=scheduler, budget={"trials": 9}), None)
    numbers = [take(manager) for _ in range(9)]
    stopped = [manager.report(number, 4, measured(float(value))) for value, number in enumerate(numbers)]
    assert stopped[0] is Decision.CONTINUE, "the best goes on"
    assert set(stopped[3:]) == {Decision.STOP}, "what is not in the best third is stopped"
    assert all(manager.report(0, step, measured(0.0)) is Decision.CONTINUE for step in (8, 12))


def test_maximised_objectives_keep_the_highest(storage: str) -> None:
    manager = TrialManager(study_of(objectives=[{"metric": "modes_covered", "mode": "max"}]), storage)
    for number, values in enumerate([[0.2, 0.8, 0.4], [0.6]]):
        take(manager)
        for step, value in enumerate(values, start=1):
            manager.report(number, step, measured(1.0, modes_covered=value))
        manager.complete(number)
    assert [(t.number, t.value) for t in record(storage).ranked()] == [(0, 0.8), (1, 0.6)]


SAMPLING = {"model.sampling_steps": {"choice": [2, 3, 4]}}  # of a denoiser: its training is one
TRAINED = {"training.optimizer.lr": {"choice": [2e-4, 1e-3]}}
LENGTHS = {"training.steps": {"choice": [8, 12]}}
EDM = {**POINTS, "model": MODELS["edm"]}


def of_one_training(**changes: Any) -> StudyConfig:
    """A study whose trials share their training: they differ in how it is sampled."""
    parts = {"experiment": EDM, "search": SAMPLING, "sampler": {"name": "brute_force"}, "start_from": []}
    return study_of(**{**parts, "budget": {"trials": 3}, **changes})


def handed_out(manager: TrialManager, places: int = 4) -> list[int]:
    """The numbers of the trials that may start now."""
    return [spec.number for spec in iter(lambda: manager.next(places), None)]


def test_trials_wait_at_a_place_for_the_one_that_trains_what_they_need(storage: str) -> None:
    manager = TrialManager(of_one_training(), storage)
    assert handed_out(manager, places=2) == [0]
    assert len(record(storage).trials) == 3, "two are held back, each at a place"
    assert manager.remaining == 2
    manager.report(0, 12, measured(1.0))
    manager.complete(0)
    assert handed_out(manager) == [1, 2], "what is trained needs nobody's time"
    assert manager.remaining == 0


@pytest.mark.parametrize("ending", ["prune", "fail", "pause", "suspend", "requeue"])
def test_a_training_that_one_trial_leaves_is_taken_up_by_the_next(storage: str, ending: str) -> None:
    manager = TrialManager(of_one_training(), storage)
    assert handed_out(manager) == [0]
    getattr(manager, ending)(0, *(["why"] if ending == "fail" else []))
    assert handed_out(manager) == [1], "one at a time"


def test_a_training_of_fewer_steps_does_not_end_one_of_more(storage: str) -> None:
    manager = TrialManager(of_one_training(search=LENGTHS | SAMPLING, budget={"trials": 6}), storage)
    specs = {}
    while (spec := manager.next(6)) is not None:
        specs[spec.number] = spec
    (first,) = specs
    manager.report(first, 4, measured(1.0))
    manager.complete(first)
    ended = specs[first].experiment.training.steps
    while (spec := manager.next(6)) is not None:
        specs[spec.number] = spec
    others = [spec for number, spec in specs.items() if number != first]
    lengths = [spec.experiment.training.steps for spec in others]
    assert lengths.count(ended) == 2, "all of that length"
    assert len(lengths) == 3, "and one that trains on"


def test_those_held_back_are_left_to_the_next_run(storage: str) -> None:
    manager = TrialManager(of_one_training(), storage)
    assert handed_out(manager) == [0]
    manager.suspend(0)
    manager.close()
    assert [trial.state for trial in record(storage).trials] == ["interrupted"] * 3
    again = TrialManager(of_one_training(), storage)
    assert again.remaining == 3
    assert handed_out(again) == [0]


SPACES = st.lists(st.sampled_from([SAMPLING, TRAINED, LENGTHS]), min_size=1, max_size=3)
ACTIONS = st.lists(
    st.sampled_from(
        ["next", "next", "report", "complete", "prune", "fail", "lose", "pause", "reopen", "kill"]
    ),
    max_size=30,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SPACES, ACTIONS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_trials_asked_are_trials_told(
    storage: str,
    spaces: list[dict[str, Any]],
    actions: list[str],
    places: int,
    random: Any,
) -> None:
    """Any order of events, with restarts in between: each trial has one ending, each training one trial."""
    name = f"study-{len(study_names(storage))}"  # in one storage, whose tables take a second to make
    search = {path: values for found in spaces for path, values in found.items()}
    study = study_of(experiment=EDM, search=search, sampler={"name": "random"}, budget={"trials": 5})
    study = study.model_copy(update={"name": name})
    live: dict[int, TrialSpec] = {}
    steps: dict[int, int] = {}
    endings: dict[int, str] = {}
    trained: set[tuple[str, int]] = set()  # since the trial manager was opened
    manager = TrialManager(study, storage)

    def take_next() -> bool:
        spec = manager.next(places - len(live)) if len(live) < places else None
        if spec is None:
            return False
        assert spec.number not in live
        assert spec.number not in endings
        assert spec.known_step == steps.get(spec.number, -1)
        rivals = [other for other in live.values() if other.training == spec.training]
        assert not rivals or (spec.training, spec.experiment.training.steps) in trained
        live[spec.number] = spec
        return True

    def evaluate(number: int) -> None:
        steps[number] = steps.get(number, 0) + 1
        manager.report(number, steps[number], measured(random.random()))

    def end(number: int, how: str) -> None:
        if how == "complete":
            evaluate(number)
            manager.complete(number)
            trained.add((live[number].training, live[number].experiment.training.steps))
        elif how == "prune":
            manager.prune(number)
        else:
            manager.fail(number, "why")
        endings[number] = how
        del live[number]

    for action in [*actions, "reopen"]:
        if action == "next":
            take_next()
        elif action in ("reopen", "kill"):
            if action == "reopen":
                for number in live:
                    manager.suspend(number)
                manager.close()
                assert {t.state for t in read_study(storage, name).trials if t.number not in endings} <= {
                    "interrupted"
                }
            manager = TrialManager(study, storage)
            live, trained = {}, set()
        elif live:
            number = random.choice(list(live))
            if action == "report":
                evaluate(number)
            elif action in ("lose", "pause"):
                (manager.requeue if action == "lose" else manager.pause)(number)
                del live[number]
            else:
                end(number, action)
    while take_next() or live:  # nothing waits for ever
        if len(live) == places or random.random() < 0.5:
            end(next(iter(live)), "complete")
    assert manager.remaining == 0
    states = {trial.number: trial.state for trial in read_study(storage, name).trials}
    expected = {"complete": "complete", "prune": "pruned", "fail": "fail"}
    assert states == {number: expected[ending] for number, ending in endings.items()}
    assert len(states) == study.budget.trials
