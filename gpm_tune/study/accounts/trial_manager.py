"""The trial manager: accounts for every trial of a study, in Optuna's storage, the source of truth.

Each trial is asked for once and told once. One that was running when the program went away is handed
out again before a new one is asked for; one that was stopped early is PRUNED and keeps its
intermediate values; one that failed is FAIL with its reason.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from gpm_tune.config import SEEDS
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.budget_tracker import BudgetTracker
from gpm_tune.study.accounts.creation import create_or_load_study
from gpm_tune.study.accounts.records import SCORES, as_costs, is_feasible, is_own, measured_of
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.training import Experiment
from gpm_tune.training.description import known_costs
from gpm_tune.training.objectives import Measured


@dataclass(frozen=True)
class TrialSpec:
    """A trial to be run: its sampled values, the whole experiment, and where it left off if it did."""

    number: int
    values: dict[str, Any]
    experiment: Experiment
    known_step: int  # of its last evaluation that was told of; -1 where there is none
    run: str | None = None  # its training run, where that is not named by the experiment: a fork's
    replaces: int | None = None  # the trial that ends where this one, a fork, begins

    @property
    def training(self) -> str:
        """Identifies what is trained: equal for trials that share a training run."""
        return self.run or self.experiment.training_key


class Decision(Enum):
    """What a trial does after an evaluation."""

    CONTINUE = "go on"
    STOP = "stop"
    PAUSE = "pause"


class TrialManager:
    """Hands out the trials of a study and records what becomes of them."""

    def __init__(
        self,
        study: StudyConfig,
        storage: str | None,
        patience: Patience | None = None,
    ) -> None:
        """Open the study in the storage, or create it; None for one that is forgotten.

        patience: see `open_study`.
        Raises UserError where a study of this name has another base, search space or objective.
        """
        self.study = study
        self._patience = patience or Patience()
        self._optuna = create_or_load_study(study, storage, self._patience)
        self.id: str = self._optuna.user_attrs["id"]  # beyond its name, which may be used again
        trials = self._optuna.get_trials(deepcopy=False)
        own = [trial for trial in trials if is_own(trial)]
        # The seed moves on with the trials, so that a restart does not repeat their draws.
        self._optuna.sampler = study.sampler.build((study.sampler.seed + len(own)) % SEEDS)
        self._optuna.pruner = study.scheduler.build(study.experiment.training.steps)
        self.spending = BudgetTracker(self._optuna, study.budget, study.resources.gpu)
        self._unfinished = {
            t.number: optuna.Trial(self._optuna, t._trial_id) for t in own if t.state == TrialState.RUNNING
        }
        self._held: dict[int, TrialSpec] = {}  # while another trial trains what they need
        self._trained: set[tuple[str, int]] = set()  # trainings, and steps at which they came to an end
        self._asked = sum("forked_from" not in trial.user_attrs for trial in own)
        self._waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        self._proposals = self._not_yet_asked(trials)
        self._live: dict[int, optuna.Trial] = {}
        self._trainings: dict[int, tuple[str, int]] = {}  # of live trials: which, and up to which step
        self._goals = study.goals
        self._bests: dict[int, dict[str, Any]] = {}
        self._costs: dict[int, list[float]] = {}  # of those bests that keep the constraints
        for trial in own:
            if best := trial.user_attrs.get("progress", {}).get("best"):
                self._keep_best(trial.number, best)

    @property
    def data_fingerprint(self) -> str:
        """Of the samples that the study's results are bound to; empty for one that is in no storage."""
        identity = json.loads(self._optuna.user_attrs["identity"])
        found: str = identity.get("fingerprints", {}).get("data", "")
        return found

    def keep_environment(self, tags: Mapping[str, str]) -> None:
        """Remember with which versions, and on which machine, the study is run."""
        self._optuna.set_user_attr("environment", dict(tags))

    def run_key(self, number: int) -> str:
        """Identifies a trial's run in MLflow."""
        return f"{self.id}/{number:04d}"

    @property
    def remaining(self) -> int:
        """Trials that have to be run, or finished, to fill the budget."""
        left = max(0, self.study.budget.trials - self._asked)
        if self._proposals is not None:
            left = min(left, self._waiting + len(self._proposals))
        return left + len(self._unfinished) + len(self._held)

    def used_up(self, training: int = 0, price: float | None = None) -> str | None:
        """Which part of the budget is used up, besides the number of trials; None where none is.

        training: how many trials have occupied GPUs since this was asked before. price: of the nodes that
        were up, in US dollars an hour.
        """
        self.spending.tick(training, price)
        target = self.study.budget.target
        leader = self.leader if target is not None else None
        best = None if leader is None else self._bests[leader]["scores"][0]
        if target is not None and best is not None and not self._goals[0].better(target, best):
            return f"{self._goals[0].metric} has reached {target:g} (budget.target)"
        return self.spending.used_up()

    @property
    def leader(self) -> int | None:
        """The best trial so far: feasible, by its best evaluation; None while there is none."""
        return min(self._costs, key=lambda number: (self._costs[number], number), default=None)

    def best_of(self, number: int) -> dict[str, Any] | None:
        """The evaluation by which a trial is judged, with its step and scores; None while there is none."""
        return self._bests.get(number)

    @property
    def results(self) -> int:
        """How many trials have been measured."""
        return len(self._bests)

    def is_feasible(self, number: int) -> bool:
        """Whether a trial keeps the constraints at its best evaluation, if it has one."""
        return number not in self._bests or number in self._costs

    def _keep_best(self, number: int, best: dict[str, Any]) -> None:
        self._bests[number] = best
        self._costs.pop(number, None)
        if is_feasible(self.study.constraints, measured_of(best)):
            self._costs[number] = as_costs(self._goals, best["scores"])

    @property
    def unfinished(self) -> set[int]:
        """The trials that wait to be handed out again."""
        return set(self._unfinished)

    def next(self, places: int = 1) -> TrialSpec | None:
        """The next trial to run, unfinished ones first; None where there is none now.

        places: for how many trials there is room. Trials whose training another one is at are held back,
        each at a place, and are handed out once that has ended.
        """
        free = (number for number, spec in self._held.items() if not self._is_being_trained(spec))
        number = next(free, None)
        if number is not None:
            return self._hand_out(self._held.pop(number))
        while len(self._held) < places:
            picked = self._pick()
            if picked is None:
                return None
            spec = self._assign(*picked)
            if spec and self._is_being_trained(spec):
                self._held[spec.number] = spec
            elif spec:
                return self._hand_out(spec)
        return None

    def draw(self, count: int) -> list[TrialSpec]:
        """The first trials of a study that is not to be run, at most so many."""
        drawn: list[TrialSpec] = []
        while len(drawn) < count and (picked := self._pick()) is not None:
            if spec := self._assign(*picked):
                drawn.append(spec)
        return drawn

    def _is_being_trained(self, spec: TrialSpec) -> bool:
        """Tell whether a live trial is at a trial's training, which has not come to its end before."""
        is_live = any(training == spec.training for training, _ in self._trainings.values())
        return is_live and (spec.training, spec.experiment.training.steps) not in self._trained

    def _hand_out(self, spec: TrialSpec) -> TrialSpec:
        self._trainings[spec.number] = spec.training, spec.experiment.training.steps
        return spec

    def _pick(self) -> tuple[optuna.Trial, int | None] | None:
        """The next trial, and the one that it replaces, if it does."""
        if self._unfinished:
            return self._unfinished.pop(next(iter(self._unfinished))), None
        trial = self._ask()
        return None if trial is None else (trial, None)

    def _ask(self) -> optuna.Trial | None:
        """A new trial; None once the budget, or what the sampler proposes, is used up."""
        if self._asked >= self.study.budget.trials:
            return None
        if self._waiting:
            self._waiting -= 1
        elif self._proposals is not None:
            if not self._proposals:
                return None
            self._optuna.enqueue_trial(self._proposals.popleft())
        self._asked += 1
        return self._optuna.ask()

    def _not_yet_asked(self, trials: list[FrozenTrial]) -> deque[dict[str, Any]] | None:
        """What is left of a sampler's list of proposals; None where it has no list."""
        proposals = self.study.sampler.proposals(self.study.base, self.study.search)
        if proposals is None:
            return None
        asked = {self._key(t.system_attrs.get("fixed_params", t.params)) for t in trials}
        return deque(proposal for proposal in proposals if self._key(proposal) not in asked)

    def _key(self, params: Mapping[str, Any]) -> str:
        """Equal for equal values, however they were computed."""
        return json.dumps({path: self.study.search[path].snap(params[path]) for path in sorted(params)})

    def _assign(self, trial: optuna.Trial, replaces: int | None) -> TrialSpec | None:
        """The trial of a trial, or None where its values make no experiment, or one out of bounds."""
        if "started" not in trial.user_attrs:  # Optuna's own times are local ones, of an unknown zone
            trial.set_user_attr("started", _milliseconds())
        values, tree = self._draw(trial)
        self._live[trial.number] = trial
        try:
            experiment = Experiment.model_validate(tree)
        except ValidationError as error:
            self.fail(trial.number, error.errors()[0]["msg"].removeprefix("Value error, "))
            return None
        attributes = trial.user_attrs
        if best := progress_of(trial)["best"]:  # of a fork, too
            self._keep_best(trial.number, best)
        if "values" not in attributes:
            trial.set_user_attr("values", values)
            if not self._keeps_known_bounds(trial.number, experiment):
                return None
        if attributes.get("interrupted"):
            trial.set_user_attr("interrupted", False)
        progress = progress_of(trial)
        return TrialSpec(
            trial.number,
            values,
            experiment,
            progress["step"] if progress["best"] else -1,
            attributes.get("run") if "forked_from" in attributes else None,
            replaces,
        )

    def _draw(self, trial: optuna.Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of a trial, and its experiment as plain data."""
        values = space.sample(trial, self.study.base, self.study.search)
        return values, space.put(self.study.base, values)

    def _keeps_known_bounds(self, number: int, experiment: Experiment) -> bool:
        """Whether a trial keeps the bounds on costs that are known beforehand; if not, it is not trained."""
        bounds = [c for c in self.study.constraints if c.metric in ("parameters", "nfe")]
        costs = known_costs(experiment) if bounds else {}
        broken = [c for c in bounds if c.violation(costs[c.metric]) > 0]
        if not broken:
            return True
        trial = self._live[number]
        for constraint in broken:
            trial.set_constraint(constraint.metric, constraint.violation(costs[constraint.metric]))
        found = ", ".join(f"{c.metric} is {costs[c.metric]:,.0f}, not {c}" for c in broken)
        trial.set_user_attr("reason", found)
        self._tell(number, TrialState.PRUNED)
        return False

    def report(self, number: int, step: int, measured: Measured) -> Decision:
        """Record an evaluation. Returns what the trial does next.

        An evaluation that is reported again, after a lost worker, changes nothing.
        """
        trial = self._live[number]
        progress = progress_of(trial)
        best = progress["best"]
        if best is not None and step <= progress["step"]:
            return Decision.CONTINUE
        scores = [goal.value_of(measured) for goal in self._goals]
        if best is None or self._goals[0].better(scores[0], best["scores"][0]):
            known = measured.model_dump(mode="json", include={"curve", "scalars"})
            best = {"step": step, "scores": scores, **known}
            self._keep_best(number, best)
        if len(scores) == 1:
            trial.report(scores[0], step)
        else:  # Optuna takes intermediate values of one objective only
            trial.set_user_attr(f"{SCORES}{step}", scores)
        # Last, and in one piece: what it vouches for is in the storage by now.
        trial.set_user_attr("progress", {"step": step, "seconds": measured.scalars["seconds"], "best": best})
        return self._judge(trial, scores, progress["step"], step)

    def _judge(self, trial: optuna.Trial, scores: list[float], before: int, step: int) -> Decision:  # noqa: ARG002
        """What a trial does after an evaluation at a step. before: the step of the last one."""
        return Decision.STOP if len(scores) == 1 and trial.should_prune() else Decision.CONTINUE

    def keep_run(self, number: int, run: str) -> None:
        """Remember which training run is the trial's."""
        self._live[number].set_user_attr("run", run)

    def keep_note(self, number: int, note: str) -> None:
        """Remember what happened to a trial that its owner should know; it may have paused since."""
        trial = self._live.get(number) or self._unfinished[number]
        trial.set_user_attr("note", note)

    def keep_gpu(self, number: int, kind: str) -> None:
        """Remember on what kind of GPU the trial is trained, besides those before."""
        trial = self._live[number]
        kinds = trial.user_attrs.get("gpus", [])
        if kind not in kinds:
            trial.set_user_attr("gpus", [*kinds, kind])

    def complete(self, number: int) -> None:
        """The trial ran all its steps. Its scores are those of the evaluation where its first was best."""
        self._trained.add(self._trainings[number])
        self._bound(number)
        self._tell(number, TrialState.COMPLETE, progress_of(self._live[number])["best"]["scores"])

    def prune(self, number: int) -> None:
        """The trial was stopped early; Optuna keeps its intermediate values."""
        self._bound(number)
        self._tell(number, TrialState.PRUNED)

    def _bound(self, number: int) -> None:
        """Tell Optuna by how much a trial violates each constraint."""
        trial = self._live[number]
        best = progress_of(trial)["best"]
        for constraint in self.study.constraints if best else ():
            violation = constraint.violation(constraint.value_of(measured_of(best)))
            trial.set_constraint(constraint.metric, violation)

    def fail(self, number: int, reason: str) -> None:
        """The trial ended without a usable result."""
        self._live[number].set_user_attr("reason", reason)
        self._tell(number, TrialState.FAIL)

    def pause(self, number: int) -> None:
        """The trial waits until the rest of the population has come as far."""
        self._unfinished[number] = self._released(number)

    def suspend(self, number: int) -> None:
        """The trial is left as it is; the next run of the study continues it."""
        self._live[number].set_user_attr("interrupted", True)
        self.pause(number)

    def close(self) -> None:
        """Leave paused trials, and those that were held back, to the next run of the study."""
        for number in list(self._held):
            del self._held[number]
            self.pause(number)
        for trial in self._unfinished.values():
            trial.set_user_attr("interrupted", True)
        self.spending.keep()

    def requeue(self, number: int) -> None:
        """The trial lost its process; it is handed out again, from its latest checkpoint."""
        self._unfinished = {number: self._released(number), **self._unfinished}

    def _released(self, number: int) -> optuna.Trial:
        """A trial that is no longer live; others may train what it was at."""
        self._trainings.pop(number, None)
        return self._live.pop(number)

    def _tell(self, number: int, state: TrialState, scores: list[float] | None = None) -> None:
        self._end(self._live[number], state, scores)
        self._released(number)

    def _end(self, trial: optuna.Trial, state: TrialState, scores: list[float] | None = None) -> None:
        trial.set_user_attr("ended", _milliseconds())
        self._optuna.tell(trial.number, scores, state=state, skip_if_finished=True)


def _milliseconds() -> int:
    """Since the epoch."""
    return time.time_ns() // 1_000_000


def progress_of(trial: optuna.Trial) -> dict[str, Any]:
    """How far a trial is, its training seconds, and its best evaluation."""
    progress: dict[str, Any] = trial.user_attrs.get("progress", {"step": 0, "seconds": 0.0, "best": None})
    return progress
