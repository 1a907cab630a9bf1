"""Population-based training: which trial is replaced, by a fork of which other one, with which values.

At the end of each interval it is decided once whether a trial goes on. The decision is kept with the trial
before it is carried out, and what carries it out is derived from it alone: so it is the same after a restart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from gpm_tune.study.definition.schedulers import PBT
from gpm_tune.study.definition.space import Space
from gpm_tune.training import Objective


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
