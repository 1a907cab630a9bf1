"""Population-based training: which trial is replaced, by a fork of which other one, with which values.

At the end of each interval it is decided once whether a trial goes on. The decision is kept with the trial
before it is carried out, and what carries it out is derived from it alone: so it is the same after a restart.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from gpm_tune import locations
from gpm_tune.errors import ScarcityError, UserError, first_line
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.records import is_own
from gpm_tune.study.accounts.trial_manager import Decision, TrialManager, progress_of
from gpm_tune.study.definition.schedulers import PBT
from gpm_tune.study.definition.space import Space
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.training import Objective
from gpm_tune.training.run import Runs

_log = logging.getLogger("gpm_tune")


@dataclass(frozen=True)
class Member:
    """A trial of the population: how far it is, and the latest value of its objective."""

    step: int
    value: float


class Population:
    """The trials that are compared: they were measured, and neither stopped nor failed."""

    def __init__(self, pbt: PBT, objective: Objective, steps: int, trials: Iterable[FrozenTrial]) -> None:
        """steps: of a whole training. trials: of the study, as it was left."""
        self._pbt = pbt
        self._sign = 1 if objective.mode == "min" else -1
        self._steps = steps
        self._members: dict[int, Member] = {}
        for trial in trials:
            values = trial.intermediate_values
            if values and trial.state in (TrialState.RUNNING, TrialState.COMPLETE):
                self._members[trial.number] = Member(max(values), values[max(values)])

    def awaits_decision(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial has come to the end of an interval, and nothing is decided of it there."""
        attributes = trial.user_attrs
        begun = attributes.get("decision") or attributes.get("forked_from") or {"step": 0}
        step: int = attributes.get("progress", begun)["step"]
        before: int = begun["step"]
        is_later = step // self._pbt.interval_steps > before // self._pbt.interval_steps
        return is_later and step < self._steps

    def measured(self, number: int, value: float, *, before: int, step: int) -> bool:
        """Take the latest value of a trial. Returns whether it waits now for the others to come as far.

        before: the step at which it was measured last.
        """
        self._members[number] = Member(step, value)
        return step // self._pbt.interval_steps > before // self._pbt.interval_steps

    def drop(self, number: int) -> None:
        """A trial is no longer compared, if it was."""
        self._members.pop(number, None)

    def donor(self, number: int) -> int | None:
        """The trial whose fork takes another's place, or None if that one goes on.

        Who is done cannot be forked. The same population gives the same answer.
        """
        members = self._members
        ranked = sorted(members, key=lambda other: (self._sign * members[other].value, other))
        size = max(1, int(len(ranked) * self._pbt.quantile))
        if number not in ranked[-size:] or len(ranked) < 2 * size:
            return None
        donors = [other for other in ranked[:size] if members[other].step < self._steps]
        rng = random.Random(f"{number} {members[number].step}")
        return rng.choice(donors) if donors else None

    def perturb(self, params: Mapping[str, Any], searched: Space, number: int, step: int) -> dict[str, Any]:
        """A fork's parameters: moved by the factor, either way; those that are to be drawn anew left out."""
        rng = random.Random(f"{number} {step} perturb")
        factor = self._pbt.factor
        kept = {path: value for path, value in params.items() if rng.random() >= self._pbt.resample}
        return {
            path: searched[path].perturbed(value, rng.choice([factor, 1 / factor]))
            for path, value in kept.items()
        }


class PopulationManager(TrialManager):
    """Hands out the members of a population: by turns, and forks in place of those that fall behind."""

    def __init__(
        self, study: StudyConfig, pbt: PBT, storage: str | None, runs: Runs, patience: Patience | None = None
    ) -> None:
        """runs: where training runs are kept, for forks to start from. Else as TrialManager."""
        super().__init__(study, storage, patience)
        self._runs = runs
        own = list(filter(is_own, self._optuna.get_trials(deepcopy=False)))
        self._population = Population(pbt, study.objective, study.experiment.training.steps, own)
        for trial in own:  # which a fork was to end when the program was ended
            replaced = trial.user_attrs.get("replaces")
            if replaced in self._unfinished:
                del self._unfinished[replaced]
                self._replace(replaced, trial.number)
                self._population.drop(replaced)

    def fail(self, number: int, reason: str) -> None:
        """As TrialManager."""
        self._population.drop(number)
        super().fail(number, reason)

    def _judge(self, trial: optuna.Trial, scores: list[float], before: int, step: int) -> Decision:
        pauses = self._population.measured(trial.number, scores[0], before=before, step=step)
        return Decision.PAUSE if pauses else Decision.CONTINUE

    def _pick(self) -> tuple[optuna.Trial, int | None] | None:
        """The next member: one that is under way, a new one, the one that is furthest behind, or its fork."""
        trials = self._optuna.get_trials(deepcopy=False)
        waiting = {n for n in self._unfinished if self._population.awaits_decision(trials[n])}
        under_way = [n for n in self._unfinished if n not in waiting]
        # Forks first that were decided and not made: their donors must not go on before.
        number = min(
            under_way, key=lambda n: "donor" not in trials[n].user_attrs.get("decision", {}), default=None
        )
        if number is None:
            new = self._ask()
            if new is not None:
                return new, None
            number = min(waiting, key=lambda n: (progress_of(self._unfinished[n])["step"], n), default=None)
        if number is None:
            return None
        trial = self._unfinished[number]
        if number in waiting:
            trial.set_user_attr("decision", self._decide(number))
        fork = self._fork(trial)
        del self._unfinished[number]
        if fork is None:
            return trial, None
        self._replace(number, fork.number)
        return fork, number

    def _replace(self, number: int, fork: int) -> None:
        """A fork takes a trial's place; its values say so, whenever the program is ended."""
        trials = self._optuna.get_trials(deepcopy=False)
        donor = trials[fork].user_attrs["forked_from"]["trial"]
        reason = f"replaced by trial {fork}, a fork of trial {donor}"
        trial = optuna.Trial(self._optuna, trials[number]._trial_id)
        trial.set_user_attr("reason", reason)
        self._end(trial, TrialState.PRUNED)

    def _decide(self, number: int) -> dict[str, Any]:
        """What becomes of a member: it goes on, or a fork of a donor, as it is now, takes its place."""
        step = progress_of(self._unfinished[number])["step"]
        donor = self._population.donor(number)
        if donor is None:
            return {"step": step}
        forked = self._optuna.get_trials(deepcopy=False)[donor]
        return {"step": step, "donor": donor, "progress": forked.user_attrs["progress"]}

    def _fork(self, trial: optuna.Trial) -> optuna.Trial | None:
        """The fork that takes a member's place, as was decided; None where it goes on itself.

        Raises ScarcityError where the storage stays away: the decision stands.
        """
        decision = trial.user_attrs.get("decision", {})
        if "donor" not in decision:
            return None
        donor, progress = decision["donor"], decision["progress"]
        number, step = trial.number, progress["step"]
        forked = self._optuna.get_trials(deepcopy=False)[donor]
        make = partial(self._runs.forked, forked.user_attrs["run"], step, f"{self.id} {number}")
        try:
            run = locations.retry(make, is_over=self._patience.is_over)
        except UserError as error:  # it was dropped, by who shares the training
            _log.warning("trial %d goes on, and no fork takes its place: %s", number, error)
            trial.set_user_attr("decision", {"step": decision["step"]})
            return None
        except OSError as error:
            raise ScarcityError(f"the storage stayed away: {first_line(error)}") from error
        params = self._population.perturb(forked.params, self.study.search, number, step)
        origin = {"trial": donor, "step": step, "best": progress["best"]}
        attributes = {"forked_from": origin, "replaces": number, "run": run.name, "progress": progress}
        # In one write: a process that ends here leaves either no fork, or one that is to be run.
        fork = optuna.create_trial(
            state=TrialState.RUNNING, user_attrs=attributes, system_attrs={"fixed_params": params}
        )
        self._optuna.add_trial(fork)
        self._population.drop(number)
        return optuna.Trial(self._optuna, self._optuna.get_trials(deepcopy=False)[-1]._trial_id)


def trial_manager(
    study: StudyConfig, storage: str | None, runs: Runs, patience: Patience | None = None
) -> TrialManager:
    """What hands out a study's trials, as its scheduler wants it. The parameters are the managers'."""
    if isinstance(study.scheduler, PBT):
        return PopulationManager(study, study.scheduler, storage, runs, patience)
    return TrialManager(study, storage, patience)
