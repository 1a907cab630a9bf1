"""Several objectives, constraints, budgets, confirmation: what the trial manager makes of them."""

import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from examples import POINTS, measured, study_of
from hypothesis import given, settings
from hypothesis import strategies as st
from managers import PBT, keep_checkpoint, record, take

from gpm_tune import locations
from gpm_tune.config import SEEDS
from gpm_tune.study.accounts.confirmation import ConfirmationManager, best_shares, confirmed, rank_agreement
from gpm_tune.study.accounts.population import trial_manager
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.accounts.trial_manager import Decision, TrialManager, TrialSpec
from gpm_tune.study.definition import space
from gpm_tune.training.objectives import Measured
from gpm_tune.training.run import Runs


def run(manager: TrialManager, number: int, *evaluations: Measured) -> None:
    for step, found in enumerate(evaluations, start=1):
        manager.report(number, step, found)
    manager.complete(number)


def test_the_pareto_front_is_optunas(storage: str) -> None:
    goals = [{"metric": "sliced_wasserstein"}, {"metric": "nfe"}]
    manager = TrialManager(study_of(objectives=goals), storage)
    for value, nfe in [(3.0, 1), (1.0, 8), (2.0, 8), (2.0, 4)]:
        run(manager, take(manager), measured(value, nfe=nfe))
    front = [trial.number for trial in record(storage).front()]
    assert front == [1, 3, 0]
    theirs = optuna.load_study(study_name="small", storage=storage).best_trials
    assert sorted(front) == [trial.number for trial in theirs]
    assert record(storage).ranked()[-1].number == 2


def test_a_violated_constraint_is_known_to_optuna_and_no_result(storage: str) -> None:
    manager = TrialManager(study_of(constraints=[{"metric": "frechet", "max": 5.0}]), storage)
    run(manager, take(manager), measured(1.0, frechet=9.0))
    run(manager, take(manager), measured(2.0, frechet=4.0))
    assert [(t.number, t.state) for t in record(storage).trials] == [(0, "infeasible"), (1, "complete")]
    assert [trial.number for trial in record(storage).ranked()] == [1]
    study = optuna.load_study(study_name="small", storage=storage)
    assert study.trials[0].constraints == {"frechet": 4.0}
    assert study.best_trial.number == 1


def test_what_is_known_to_be_out_of_bounds_is_not_trained(storage: str) -> None:
    search = {"model.sampling_steps": {"int": [2, 8], "step": 2}}
    constraints = [{"metric": "nfe", "max": 4}, {"metric": "parameters", "max": 1e6}]
    study = study_of(search=search, constraints=constraints, sampler={"name": "brute_force"}, start_from=[])
    manager, trained = TrialManager(study, storage), []
    while (spec := manager.next()) is not None:
        trained.append(spec.experiment.model.sampling_steps)
        run(manager, spec.number, measured(1.0, nfe=trained[-1], parameters=10.0))
    assert sorted(trained) == [2, 4]
    refused = [trial for trial in record(storage).trials if trial.state == "infeasible"]
    assert {trial.values["model.sampling_steps"] for trial in refused} == {6, 8}
    assert all(trial.reason and "not nfe ≤ 4" in trial.reason for trial in refused)


def test_a_target_ends_the_study(storage: str) -> None:
    manager = TrialManager(study_of(budget={"trials": 4, "target": 0.5}), storage)
    number = take(manager)
    manager.report(number, 1, measured(0.6))
    assert manager.used_up() is None
    manager.report(number, 2, measured(0.5))
    assert manager.used_up() == "sliced_wasserstein has reached 0.5 (budget.target)"
    assert TrialManager(study_of(budget={"trials": 4, "target": 0.5}), storage).used_up()


def test_a_target_is_not_reached_by_what_is_no_result(storage: str) -> None:
    bounds = [{"metric": "frechet", "max": 5.0}]
    manager = TrialManager(study_of(budget={"trials": 4, "target": 0.5}, constraints=bounds), storage)
    number = take(manager)
    manager.report(number, 1, measured(0.4, frechet=9.0))
    assert manager.leader is None
    assert manager.used_up() is None
    manager.complete(number)
    manager.report(take(manager), 1, measured(0.5, frechet=4.0))
    assert manager.used_up() == "sliced_wasserstein has reached 0.5 (budget.target)"
    assert record(storage).ranked()[0].value == 0.5


EVALUATIONS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=3)


@settings(max_examples=10)
@given(
    st.lists(EVALUATIONS, max_size=4),
    st.sampled_from(["complete", "fail", "stay"]),
    st.lists(st.sampled_from(["min", "max"]), min_size=1, max_size=2),
)
def test_the_leader_is_the_first_of_the_ranking_at_any_time(
    tmp_path_factory: pytest.TempPathFactory,
    trials: list[list[tuple[int, int, int]]],
    end: str,
    modes: list[str],
) -> None:
    """With one or two objectives, with a constraint, among trials in any state, and after a restart."""
    storage = f"sqlite:///{tmp_path_factory.mktemp('leader') / 'optuna.db'}"
    first_metric = "modes_covered" if modes[0] == "max" else "frechet"
    goals = [{"metric": first_metric, "mode": modes[0]}, {"metric": "sliced_wasserstein"}]
    study = study_of(
        objectives=goals[: len(modes)],
        constraints=[{"metric": "energy_distance", "max": 2.0}],
        budget={"trials": 4},
    )
    manager = TrialManager(study, storage)
    for evaluations in trials:
        number = take(manager)
        for step, (value, other, bound) in enumerate(evaluations, start=1):
            manager.report(number, step, measured(other, **{first_metric: value, "energy_distance": bound}))
            first = next(iter(record(storage).ranked()), None)
            assert manager.leader == (first and first.number)
        if end == "complete" and evaluations:
            manager.complete(number)
        elif end == "fail":
            manager.fail(number, "why")
        first = next(iter(record(storage).ranked()), None)
        assert manager.leader == TrialManager(study, storage).leader == (first and first.number)


def test_hours_add_up_over_restarts(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("gpm_tune.study.accounts.budget_tracker.time.monotonic", lambda: now[0])
    budget = {"trials": 9, "hours": 9.0, "gpu_hours": 1.5}
    study = study_of(budget=budget, resources={"gpu": 0.5})
    for passed, reason in ((3600.0, None), (1800.0, None), (3600.0, "1.5 GPU-hours are used up")):
        manager = TrialManager(study, storage)
        assert manager.used_up() is None, "time between sessions is not counted"
        now[0] += passed
        found = manager.used_up(training=2 if passed == 3600.0 and reason else 1)
        assert found is None if reason is None else found and found.startswith(reason)
        manager.close()
        now[0] += 10_000
    spent = record(storage)
    assert spent.hours == pytest.approx(2.5)
    assert spent.gpu_hours == pytest.approx(0.5 * 1 + 0.5 * 0.5 + 0.5 * 2)


def test_the_best_trials_are_confirmed_with_new_seeds(storage: str) -> None:
    study = study_of(confirm={"trials": 2, "seeds": 3})
    manager = TrialManager(study, storage)
    for value in (3.0, 1.0, 2.0, 4.0):
        run(manager, take(manager), measured(value))
    best = record(storage).ranked()[:2]
    stage, seen = ConfirmationManager(study, storage, best), []
    for restart in (False, True):
        if restart:  # half way: nothing is repeated, nothing is lost
            stage = ConfirmationManager(study, storage, best)
        while (spec := stage.next()) is not None:
            assert spec.experiment.model_dump()["model"]["eta"] > 0
            seen.append(spec.experiment.seed)
            run(stage, spec.number, measured(10.0 + len(seen)))
            if len(seen) == 3:
                break
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]
    rows = confirmed(record(storage), read_study(storage, "small.confirm"))
    assert {row.number: row.searched for row in rows} == {1: 1.0, 2: 2.0}
    assert rows[0].mean == pytest.approx(13.0)  # of 11, 13, 15
    assert rows[0].std == pytest.approx(2.0)
    assert rank_agreement(rows) == pytest.approx(1.0)


def test_after_the_last_seed_the_first_ones_confirm(storage: str) -> None:
    experiment = space.put(POINTS, {"seed": SEEDS - 2})
    study = study_of(experiment=experiment, budget={"trials": 1}, confirm={"trials": 1, "seeds": 3})
    manager = TrialManager(study, storage)
    run(manager, take(manager), measured(1.0))
    stage = ConfirmationManager(study, storage, record(storage).ranked())
    seeds = []
    while (spec := stage.next()) is not None:
        seeds.append(spec.experiment.seed)
        run(stage, spec.number, measured(1.0))
    assert seeds == [SEEDS - 1, 0, 1]


def test_a_confirmed_zero_is_a_zero(storage: str) -> None:
    study = study_of(confirm={"trials": 2, "seeds": 2})
    manager = TrialManager(study, storage)
    for value in (0.0, 0.0):
        run(manager, take(manager), measured(value))
    stage = ConfirmationManager(study, storage, record(storage).ranked()[:2])
    for _ in range(3):
        run(stage, take(stage), measured(0.0))
    rows = confirmed(record(storage), read_study(storage, "small.confirm"))
    assert [(row.searched, row.mean) for row in rows] == [(0.0, 0.0)] * 2
    assert {row.std for row in rows} == {0.0, None}, "a single value has none"
    assert rank_agreement(rows) is None, "all are alike"


def test_overlapping_seeds_share_the_first_place() -> None:
    import numpy as np

    clear = best_shares([np.array([1.0, 1.1, 0.9]), np.array([2.0, 2.1, 1.9])])
    assert clear == [1.0, 0.0]
    unclear = best_shares([np.array([1.0, 3.0, 2.0]), np.array([2.1, 1.0, 3.0])])
    assert 0.3 < unclear[1] < 0.7
    assert sum(unclear) == pytest.approx(1.0)


class Population:
    """The trial manager of a study by PBT, whose trials have training runs."""

    def __init__(self, folder: Path) -> None:
        self.runs = Runs(str(folder / "runs"), folder / "cache")
        self.storage = f"sqlite:///{folder / 'optuna.db'}"
        self.reopen()

    def reopen(self) -> None:
        self.manager = trial_manager(study_of(**PBT), self.storage, self.runs)

    def start(self, count: int) -> list[TrialSpec]:
        found = [self.manager.next() for _ in range(count)]
        assert None not in found
        return [spec for spec in found if spec]

    def measure(self, spec: TrialSpec, step: int, value: float) -> Decision:
        """Up to a step; a trial has a checkpoint before it is heard of."""
        name = spec.run or f"edm-points-{spec.number}"
        keep_checkpoint(self.runs.named(name), step)
        self.manager.keep_run(spec.number, name)
        return self.manager.report(spec.number, step, measured(value))

    def pause_all(self) -> None:
        """Four trials come to the first interval's end: 0 is the best, 3 the worst."""
        for spec in self.start(4):
            assert self.measure(spec, 4, float(spec.number)) is Decision.PAUSE
            self.manager.pause(spec.number)


@pytest.fixture
def population(tmp_path: Path) -> Population:
    return Population(tmp_path)


def test_forks_of_the_best_replace_the_worst(population: Population) -> None:
    population.pause_all()
    population.reopen()  # a restart in between changes nothing
    following = population.start(4)
    assert [spec.number for spec in following] == [0, 1, 2, 4]
    first, *_, fork = following
    assert (fork.replaces, fork.known_step) == (3, 4)
    assert fork.run is not None
    assert population.runs.named(fork.run).newest(4) == 4, "a copy: the donor drops its own"
    assert fork.run != "edm-points-0"
    assert fork.values != first.values
    for spec in following:
        assert population.measure(spec, 12, 0.5) is Decision.PAUSE
        population.manager.complete(spec.number)
    trials = record(population.storage).trials
    states = {trial.number: trial.state for trial in trials}
    assert states == {0: "complete", 1: "complete", 2: "complete", 3: "pruned", 4: "complete"}
    assert (trials[4].forked_from, trials[4].run) == ("trial 0, step 4", fork.run)
    population.reopen()
    assert population.manager.next() is None, "forks do not count as members"


def test_what_was_decided_of_a_member_is_not_decided_again(population: Population) -> None:
    """Without trial 3, trial 2 is the worst: a new decision would replace it, too."""
    population.pause_all()
    before = {spec.number: spec.replaces for spec in population.start(4)}
    assert before == {0: None, 1: None, 2: None, 4: 3}
    population.reopen()
    assert {spec.number: spec.replaces for spec in population.start(4)} == dict.fromkeys(before)
    assert population.manager.next() is None


def test_a_member_that_is_under_way_comes_before_what_is_to_be_decided(population: Population) -> None:
    """So a restart decides with the same values as a study that nothing disturbs."""
    population.pause_all()
    (first,) = population.start(1)
    population.measure(first, 6, 9.0)
    population.reopen()
    assert [spec.number for spec in population.start(2)] == [0, 1]


def test_a_fork_is_made_of_its_donor_as_that_was_when_it_was_decided(
    population: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    population.pause_all()
    donor, *_ = population.start(3)
    with monkeypatch.context() as patch:
        end_before(population.manager._optuna, "add_trial", patch)
        with pytest.raises(Ended):
            population.manager.next()
    begun = population.runs.names()
    population.measure(donor, 6, -1.0)
    population.reopen()
    fork = population.manager.next()
    assert fork is not None
    assert (fork.number, fork.replaces, fork.known_step) == (4, 3, 4)
    assert population.runs.names() == begun, "the folder that was made is found again"


def test_a_member_goes_on_where_its_donors_weights_are_gone(population: Population) -> None:
    population.pause_all()
    locations.delete(population.runs.named("edm-points-0").checkpoint(4))
    assert [spec.number for spec in population.start(4)] == [0, 1, 2, 3]
    population.reopen()
    assert [spec.number for spec in population.start(4)] == [0, 1, 2, 3]


def test_times_do_not_depend_on_the_zone_in_which_they_are_read(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    try:
        for zone in ("Asia/Tokyo", "America/New_York"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            if not found:
                manager = TrialManager(study_of(), storage)
                run(manager, take(manager), measured(1.0))
            found.append([(trial.started, trial.ended) for trial in record(storage).trials])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found[0] == found[1]
    started, ended = found[0][0]
    assert abs(time.time() * 1000 - started) < 60_000
    assert ended >= started


class Ended(BaseException):
    """Stands for the end of the process."""


def end_before(target: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    """Let the process end before something is written."""

    def ends(*_: Any, **__: Any) -> None:
        raise Ended

    patch.setattr(target, name, ends)


@pytest.mark.parametrize("write", ["copy", "add_trial", "set_trial_user_attr", "tell"])
def test_a_process_that_ends_within_a_fork_leaves_one_fork_in_the_end(
    population: Population, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    population.pause_all()
    population.start(3)
    study = population.manager._optuna
    places = {"copy": locations, "set_trial_user_attr": study._storage}
    with monkeypatch.context() as patch:
        end_before(places.get(write, study), write, patch)
        with pytest.raises(Ended):
            population.manager.next()
    population.reopen()
    specs = {spec.number: spec for spec in population.start(4)}
    assert population.manager.next() is None
    trials = optuna.load_study(study_name="small", storage=population.storage).trials
    (fork,) = (trial for trial in trials if trial.user_attrs.get("replaces") == 3)
    run = specs[fork.number].run
    assert run is not None
    assert population.runs.named(run).newest(12) == specs[fork.number].known_step == 4
    assert (trials[3].state.name, trials[3].user_attrs["reason"]) == (
        "PRUNED",
        f"replaced by trial {fork.number}, a fork of trial 0",
    )
    running = [trial.number for trial in trials if trial.state.name == "RUNNING"]
    assert running == sorted(specs), "none waits that nobody will ask for"


def test_a_fork_is_made_though_a_start_point_waits_beyond_the_budget(tmp_path: Path) -> None:
    starts = [{"model.eta": eta, "model.loss": "vanilla"} for eta in (1.0, 2.0, 3.0, 4.0, 5.0)]
    population = Population(tmp_path)
    population.manager = trial_manager(study_of(**PBT, name="more", start_from=starts), None, population.runs)
    population.pause_all()
    *_, fork = population.start(4)
    assert (fork.replaces, fork.known_step) == (3, 4)


@pytest.mark.parametrize("ended", range(4))
def test_a_process_that_ends_as_it_asks_confirms_no_pair_twice(
    storage: str, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(confirm={"trials": 2, "seeds": 2})
    manager = TrialManager(study, storage)
    for value in (1.0, 2.0):
        run(manager, take(manager), measured(value))
    best = record(storage).ranked()[:2]
    stage = ConfirmationManager(study, storage, best)
    for _ in range(ended):
        run(stage, take(stage), measured(1.0))
    with monkeypatch.context() as patch:
        end_before(stage._optuna, "ask", patch)
        with pytest.raises(Ended):
            stage.next()
    stage = ConfirmationManager(study, storage, best)
    while (spec := stage.next()) is not None:
        run(stage, spec.number, measured(1.0))
    found = read_study(storage, "small.confirm").trials
    pairs = [(trial.confirms, trial.values["seed"]) for trial in found]
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert {trial.state for trial in found} == {"complete"}
