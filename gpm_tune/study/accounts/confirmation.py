"""The stage after a search: its best trials again with other seeds, and how their order holds."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from gpm_tune.config import SEEDS
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.creation import create_or_load_study
from gpm_tune.study.accounts.records import StudyRecord, TrialRecord
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.study.definition.samplers import Random
from gpm_tune.study.definition.schedulers import NoScheduler
from gpm_tune.study.definition.specification import CONFIRMATION, Budget, StudyConfig

MAX_SEED = 2**32 - 1
RESAMPLES = 10_000


class ConfirmationManager(TrialManager):
    """Hands out each of the best trials of a search, once for each new seed."""

    def __init__(
        self,
        study: StudyConfig,
        storage: str,
        candidates: list[TrialRecord],
        patience: Patience | None = None,
    ) -> None:
        """candidates: the trials of the search that are to be confirmed. patience: see `open_study`.

        Raises OtherDataError where the data have changed since the search.
        """
        assert study.confirm is not None, "the study has this stage"
        self._candidates = {trial.number: trial for trial in candidates}
        # After the last seed there is, the first.
        self._seeds = [(study.experiment.seed + 1 + index) % SEEDS for index in range(study.confirm.seeds)]
        stage = {
            "name": study.name + CONFIRMATION,
            "start_from": [],
            "warm_start": [],
            "constraints": [],
            "sampler": Random(name="random"),
            "scheduler": NoScheduler(name="none"),
            "budget": Budget(trials=MAX_SEED),
        }
        create_or_load_study(study, storage, patience)  # refuses what the search was not
        super().__init__(study.model_copy(update=stage), storage, patience=patience)

    def _not_yet_asked(self, trials: list[FrozenTrial]) -> deque[dict[str, Any]]:
        proposals = [t.system_attrs.get("fixed_params", t.params) for t in trials]
        asked = {(found["trial"], found["seed"]) for found in proposals}
        pairs = [(number, seed) for seed in self._seeds for number in self._candidates]
        return deque({"trial": number, "seed": seed} for number, seed in pairs if (number, seed) not in asked)

    def _draw(self, trial: optuna.Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        number = trial.suggest_int("trial", 0, MAX_SEED)
        seed = trial.suggest_int("seed", 0, SEEDS - 1)
        values = trial.user_attrs.get("values") or {**self._candidates[number].values, "seed": seed}
        trial.set_user_attr("confirms", number)
        return values, space.put(self.study.base, values)


@dataclass(frozen=True)
class Confirmed:
    """What new seeds say of a trial."""

    number: int
    searched: float  # its value in the search
    values: list[float]  # with the new seeds
    mean: float
    std: float | None  # of one value, with n - 1; None for a single one
    best_share: float  # how often it has the best mean, over resampled seeds


def confirmed(search: StudyRecord, stage: StudyRecord) -> list[Confirmed]:
    """The trials that were confirmed, best mean first."""
    found: dict[int, list[float]] = {}
    for trial in stage.trials:
        if trial.state == "complete" and trial.confirms is not None and trial.value is not None:
            found.setdefault(trial.confirms, []).append(trial.value)
    searched = {trial.number: trial.value for trial in search.trials if trial.value is not None}
    sign = 1 if search.objective.mode == "min" else -1
    shares = best_shares([sign * np.array(values) for values in found.values()])
    rows = [
        Confirmed(
            number,
            searched[number],
            values,
            float(np.mean(values)),
            float(np.std(values, ddof=1)) if len(values) > 1 else None,
            share,
        )
        for (number, values), share in zip(found.items(), shares, strict=True)
    ]
    return sorted(rows, key=lambda row: sign * row.mean)


def best_shares(costs: list[np.ndarray]) -> list[float]:
    """How often each candidate has the lowest mean, when each one's seeds are drawn anew from its own."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, (RESAMPLES, len(values))).mean(axis=1) for values in costs]
    if not means:
        return []
    winners = np.argmin(np.stack(means), axis=0)
    return [float((winners == index).mean()) for index in range(len(means))]


def rank_agreement(rows: list[Confirmed]) -> float | None:
    """Kendall's τ between values of the search and means over new seeds; None of one trial, or equal ones."""
    from scipy.stats import kendalltau

    if len(rows) < 2:
        return None
    tau = float(kendalltau([row.searched for row in rows], [row.mean for row in rows]).statistic)
    return tau if math.isfinite(tau) else None
