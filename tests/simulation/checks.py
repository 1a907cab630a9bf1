"""What must hold of studies that have come to their end, whatever happened on the way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import StudyRecord, TrialRecord, read_study, run_user, study_names
from gpm_tune.study.definition import space
from gpm_tune.study.definition.schedulers import PBT
from gpm_tune.study.definition.specification import CONFIRMATION, StudyConfig
from gpm_tune.study.storage.home import Home
from gpm_tune.study.tracking.sender import KEY_TAG
from gpm_tune.study.tracking.views import STATUSES, trial_key
from gpm_tune.training import Experiment
from simulation.studies import Simulation
from simulation.trainer import Trainer, measured, read_weights, trained

SHARED = ("training.steps", "model.sampling_steps")  # trials that differ in them share a training
ENDED = {"complete", "pruned", "fail", "infeasible"}


def problems(simulation: Simulation) -> Iterator[str]:
    """What does not hold: a sentence each."""
    yield from simulation.world.violations
    keys: list[str] = []
    for study, home in simulation.studies:
        record = read_study(home.optuna_uri, study.name)
        trials = _frozen(simulation, home, study.name)
        keys += [record.id, *(trial_key(record, trial.number) for trial in record.trials)]
        yield from _counts(study, record, trials)
        yield from _forks(record, trials)
        yield from _stage_of(simulation, study, home, record, keys)
        for trial in record.trials:
            yield from _of_trial(simulation, home, record, trial, trials[trial.number])
    shown = Counter(run.data.tags[KEY_TAG] for run in simulation.tracking.runs.values())
    if shown != Counter(keys):
        yield f"MLflow has runs {sorted(shown.items())}, and there are {sorted(keys)}"


def outcomes(simulation: Simulation) -> dict[str, Any]:
    """What became of the trials, without what depends on time."""
    found: dict[str, Any] = {}
    for study, home in simulation.studies:
        for trial in read_study(home.optuna_uri, study.name).trials:
            key = f"{study.name} {trial.number}"
            run = (
                trial.run if trial.forked_from is None else trial.forked_from
            )  # a fork's is of its study's id
            found[key] = [trial.state, trial.values, trial.scores, trial.measured, trial.best_step, run]
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where outcomes differ."""
    keys = sorted({*one, *other})
    return [f"{key}: {one.get(key)}, else {other.get(key)}" for key in keys if one.get(key) != other.get(key)]


def independent(simulation: Simulation) -> set[str]:
    """The studies whose outcome does not depend on the order in which trials come to their ends."""
    return {study.name for study, _ in simulation.studies if not _depends_on_time(simulation, study)}


def _depends_on_time(simulation: Simulation, study: StudyConfig) -> bool:
    others = [other for other, _ in simulation.studies if other is not study]
    own_keys = [path for path in study.search if path.startswith("evaluation") or path in SHARED]
    is_first = simulation.starts == 2 * len(simulation.studies)  # and what was drawn goes on as it began
    is_listed = study.sampler.name in ("grid", "brute_force") or (study.sampler.name == "random" and is_first)
    if isinstance(study.scheduler, PBT):
        is_ordered = study.resources.concurrent == 1 and not others
        is_ordered &= is_first or study.scheduler.resample == 0
    else:
        is_ordered = study.scheduler.name == "none"
    is_bounded = study.budget.hours or study.budget.target
    return bool(own_keys or is_bounded or any(_shares(study, other) for other in others)) or not (
        is_listed and is_ordered
    )


def _shares(study: StudyConfig, other: StudyConfig) -> bool:
    """Tell whether another study may train the same, and measure it otherwise."""
    one, two = study.experiment, other.experiment
    is_same = one.model.name == two.model.name or (two.teacher and one.model.name == two.teacher.model.name)
    return bool(is_same) and (one.evaluation, one.training.steps) != (two.evaluation, two.training.steps)


def _frozen(simulation: Simulation, home: Home, name: str) -> list[FrozenTrial]:
    storage = simulation.storages[home.optuna_uri]
    return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def _counts(study: StudyConfig, record: StudyRecord, trials: list[FrozenTrial]) -> Iterator[str]:
    asked = [trial for trial in record.trials if trial.forked_from is None]
    proposals = study.sampler.proposals(study.base, study.search)
    wanted = study.budget.trials
    if proposals is not None:
        drawn = [
            json.dumps(trial.params, sort_keys=True)
            for trial in trials
            if "forked_from" not in trial.user_attrs
        ]
        listed = [json.dumps(proposal, sort_keys=True) for proposal in proposals]
        if len({*drawn}) != len(drawn):
            yield f"{study.name}: a combination is tried twice: {drawn}"
        wanted = min(wanted, len({*listed, *drawn}))  # the base need not be one of them
    left = [trial.number for trial in record.trials if trial.state not in ENDED]
    is_short = (study.budget.hours or 1e9) <= record.hours
    if study.budget.target is not None:
        best = min(
            (trial.scores[0] for trial in record.trials if trial.scores and trial.feasible), default=1e9
        )
        is_short |= best <= study.budget.target
    if len(asked) > wanted:
        yield f"{study.name}: {len(asked)} trials of {wanted}"
    if not is_short and (left or len(asked) != wanted):
        yield f"{study.name}: {len(asked)} trials of {wanted}, of which {left} are left"


def _forks(record: StudyRecord, trials: list[FrozenTrial]) -> Iterator[str]:
    forks = [trial for trial in trials if "forked_from" in trial.user_attrs]
    replaced = Counter(trial.user_attrs["replaces"] for trial in forks)
    for number, count in replaced.items():
        if count != 1 or trials[number].state.name != "PRUNED":
            yield f"{record.name}: trial {number}, {trials[number].state.name}, has {count} forks"
    names = Counter(trial.user_attrs["run"] for trial in forks)
    yield from (f"{record.name}: {count} forks share {run}" for run, count in names.items() if count > 1)
    for trial in trials:
        if trial.user_attrs.get("reason", "").startswith("replaced") and trial.number not in replaced:
            yield f"{record.name}: trial {trial.number} is replaced by no fork"


def _stage_of(
    simulation: Simulation, study: StudyConfig, home: Home, search: StudyRecord, keys: list[str]
) -> Iterator[str]:
    name = study.name + CONFIRMATION
    names = optuna.get_all_study_names(simulation.storages[home.optuna_uri])
    assert set(study_names(home.optuna_uri)) <= set(names), "stages are no studies"
    if study.confirm is None or name not in names:
        if study.confirm:
            yield f"{study.name} has not been confirmed"
        return
    record = read_study(home.optuna_uri, name)
    keys += [record.id, *(trial_key(record, trial.number) for trial in record.trials)]
    found = sorted((trial.confirms, trial.values["seed"]) for trial in record.trials)
    best = [trial.number for trial in search.ranked()[: study.confirm.trials]]
    seeds = [study.experiment.seed + 1 + index for index in range(study.confirm.seeds)]
    if found != sorted((number, seed) for number in best for seed in seeds):
        yield f"{name}: {found}, of trials {best} and seeds {seeds}"
    if not record.trials:
        keys.remove(record.id)
    trials = _frozen(simulation, home, name)
    for trial in record.trials:
        if trial.state not in ENDED:
            yield f"{name}: trial {trial.number} is {trial.state}"
        yield from _of_trial(simulation, home, record, trial, trials[trial.number])


def _of_trial(
    simulation: Simulation, home: Home, record: StudyRecord, trial: TrialRecord, frozen: FrozenTrial
) -> Iterator[str]:
    what = f"{record.name}, trial {trial.number} ({trial.state})"
    experiment = Experiment.model_validate(space.put(record.experiment, trial.values))
    metric = record.objective.metric
    told = dict(frozen.intermediate_values)
    told |= {int(k[7:]): v[0] for k, v in frozen.user_attrs.items() if k.startswith("scores:")}
    if trial.run is None:
        if told or trial.state == "complete":
            yield f"{what} has values, and no training run"
        return
    run = home.runs.named(trial.run)
    evaluations = run.evaluations(experiment.judge(record.objective))
    values = {evaluation.step: evaluation.metrics[metric] for evaluation in evaluations}
    kept = {e.step: e for e in evaluations if e.step in told and e.step <= trial.step}
    if not told.items() <= values.items():
        yield f"{what}: Optuna has {told}, the folder {values}"
    if not trial.forked_from and trial.scores and trial.scores[0] != min(told.values()):
        yield f"{what}: its score is {trial.scores[0]}, of {told}"
    if trial.forked_from is None:
        for step, evaluation in kept.items():
            weights = trained(experiment, step, _teacher_of(experiment))
            if evaluation != evaluation.model_copy(update=dict(measured(experiment, weights, step))):
                yield f"{what}: its evaluation at step {step} is not of its training"
    if run_user(read_study(home.optuna_uri, record.name).id) not in _users(simulation, run.location):
        yield f"{what} is no user of its training run"
    if trial.state in ("complete", "infeasible") and frozen.state.name == "COMPLETE":
        # Members of a population that share a training go on with it by turns, each with another judge.
        is_alone = len(simulation.studies) == 1 and simulation.studies[0][0].scheduler.name != "pbt"
        yield from _checkpoint_of(what, run, experiment, trial, is_alone=is_alone)
    yield from _shown(simulation, what, trial_key(record, trial.number), trial, metric, kept)


def _users(simulation: Simulation, location: str) -> list[str]:
    return simulation.bucket.children(f"{location}/users")


def _teacher_of(experiment: Experiment) -> str | None:
    """The weights of a teacher that nothing has disturbed."""
    if experiment.teacher is None:
        return None
    key = json.dumps(experiment.teacher.model_dump(mode="json"), sort_keys=True)
    if key not in _teachers:
        trainer = Trainer(experiment.teacher)
        while not trainer.done:
            trainer.run_interval()
        _teachers[key] = trainer._best_weights
    return _teachers[key]


_teachers: dict[str, str] = {}


def _checkpoint_of(
    what: str, run: Any, experiment: Experiment, trial: TrialRecord, *, is_alone: bool
) -> Iterator[str]:
    try:
        saved = run.saved(experiment, trial.best_step)
    except UserError as error:
        if not is_alone and "no longer kept" in str(error):
            return  # another judge has written the checkpoint again
        yield f"{what}: its best weights, of step {trial.best_step}, are not there: {error}"
        return
    if saved.weights == "best" and trial.forked_from is None:
        step = trial.best_step or 0
        if read_weights(saved.folder) != trained(experiment, step, _teacher_of(experiment)):
            yield f"{what}: {saved.folder} has other weights than those of step {step}"


def _shown(
    simulation: Simulation, what: str, key: str, trial: TrialRecord, metric: str, kept: dict[int, Any]
) -> Iterator[str]:
    """What MLflow shows otherwise than the records have it."""
    server = simulation.tracking
    for identifier, run in server.runs.items():
        if run.data.tags[KEY_TAG] != key:
            continue
        if run.info.status != STATUSES[trial.state]:
            yield f"{what}: MLflow shows {run.info.status}"
        points = {
            at: values
            for (name, *at_), values in server.points[identifier].items()
            if name == metric
            for at in [tuple(at_)]
        }
        wanted = {(e.time, e.step): [e.metrics[metric]] for e in kept.values()}
        if simulation.world.has_frozen:  # two may have measured the same, of whom one froze before it wrote
            wanted |= {at: [kept[at[1]].metrics[metric]] for at in points if at[1] in kept}
        if points != wanted:
            yield f"{what}: MLflow has {points}, the folder {wanted}"
        if any(len(values) > 1 for values in server.points[identifier].values()):
            yield f"{what}: MLflow has two values at one point"
        pictures = {path for path in server.artifacts[identifier] if path.startswith("samples")}
        if pictures != {f"samples/step_{step:07d}.png" for step in kept}:
            yield f"{what}: MLflow has pictures {sorted(pictures)} of steps {sorted(kept)}"
        best = [
            (at[1], at[0], v)
            for (name, *at), v in server.points[identifier].items()
            if name == f"best/{metric}"
        ]
        if trial.scores and best and max(best)[2] != [trial.scores[0]]:
            yield f"{what}: MLflow has best {best}, Optuna {trial.scores}"
