"""Population-based training: which trial is replaced, by a fork of which other one, with which values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpm_tune.study.definition.schedulers import PBT
from gpm_tune.study.definition.space import Space
from gpm_tune.training import Objective


@dataclass(frozen=True)
class Member:
    """A trial of the population: how far it is, and the latest value of its objective."""

    step: int
    value: float


def choose_donor(
    number: int, members: Mapping[int, Member], pbt: PBT, objective: Objective, steps: int
) -> int | None:
    """The trial whose fork takes a member's place, or None if the member goes on.

    steps: of a whole training; who is done cannot be forked. The same population gives the same answer.
    """
    sign = 1 if objective.mode == "min" else -1
    ranked = sorted(members, key=lambda other: (sign * members[other].value, other))
    size = max(1, int(len(ranked) * pbt.quantile))
    if number not in ranked[-size:] or len(ranked) < 2 * size:
        return None
    donors = [other for other in ranked[:size] if members[other].step < steps]
    rng = random.Random(f"{number} {members[number].step}")
    return rng.choice(donors) if donors else None


def perturb(params: Mapping[str, Any], searched: Space, pbt: PBT, number: int, step: int) -> dict[str, Any]:
    """A fork's parameters: moved by the factor, either way; those that are to be drawn anew are left out."""
    rng = random.Random(f"{number} {step} perturb")
    kept = {path: value for path, value in params.items() if rng.random() >= pbt.resample}
    return {
        path: searched[path].perturbed(value, rng.choice([pbt.factor, 1 / pbt.factor]))
        for path, value in kept.items()
    }
