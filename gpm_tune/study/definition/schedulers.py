"""Early stopping: which trials go on, as a study file chooses it. Optuna's pruners keep their state in
the storage, so that a restart loses none of it.
"""

from __future__ import annotations

import math
from statistics import mean
from typing import Annotated, Literal

import optuna
from pydantic import Field

from gpm_tune.config import Config


class Scheduler(Config):
    """Which trials go on; here all."""

    name: str

    def build(self, steps: int) -> optuna.pruners.BasePruner:
        """Optuna's pruner for trials of at most so many training steps."""
        del steps
        return optuna.pruners.NopPruner()

    def usual_share(self, steps: int) -> float:
        """The share of all steps that is trained when as many trials stop as it is built to stop."""
        del steps
        return 1.0


class Halving(Scheduler):
    """Successive halving."""

    grace_steps: int = Field(1, ge=1, description="Training steps that every trial may have.")
    reduction_factor: int = Field(3, ge=2, description="Ratio between rungs, and of survivors.")

    def _share(self, grace: int, steps: int) -> float:
        """1/factor of the trials at each rung go on to the next, factor times as far."""
        if steps == 0:  # a model in which there is nothing to train
            return 1.0
        trained, reached, surviving = 0.0, 0, 1.0
        rung = grace
        while reached < steps:
            trained += surviving * (min(rung, steps) - reached)
            reached, surviving = min(rung, steps), surviving / self.reduction_factor
            rung *= self.reduction_factor
        return trained / steps


class ASHA(Halving):
    """Asynchronous successive halving: at each rung only the best 1/reduction_factor go on."""

    name: Literal["asha"]

    def build(self, steps: int) -> optuna.pruners.BasePruner:
        del steps
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=self.grace_steps, reduction_factor=self.reduction_factor
        )

    def usual_share(self, steps: int) -> float:
        return self._share(self.grace_steps, steps)


class HyperBand(Halving):
    """Successive halving in several brackets, each of which begins to stop trials at another rung."""

    name: Literal["hyperband"]

    def build(self, steps: int) -> optuna.pruners.BasePruner:
        return optuna.pruners.HyperbandPruner(
            min_resource=self.grace_steps,
            max_resource=max(steps, self.grace_steps),
            reduction_factor=self.reduction_factor,
        )

    def usual_share(self, steps: int) -> float:
        """The mean of the brackets."""
        brackets = max(1, 1 + int(math.log(max(steps / self.grace_steps, 1), self.reduction_factor)))
        return mean(
            self._share(self.grace_steps * self.reduction_factor**bracket, steps)
            for bracket in range(brackets)
        )


class Median(Scheduler):
    """A trial stops when its best value is worse than the median of the others' at the same step."""

    name: Literal["median"]
    grace_steps: int = Field(1, ge=1, description="Training steps that every trial may have.")
    startup_trials: int = Field(5, ge=1, description="Trials that end before any is stopped.")

    def build(self, steps: int) -> optuna.pruners.BasePruner:
        del steps
        return optuna.pruners.MedianPruner(
            n_startup_trials=self.startup_trials, n_warmup_steps=self.grace_steps
        )

    def usual_share(self, steps: int) -> float:
        """Half of the trials stop after the grace."""
        return (1 + min(self.grace_steps / max(steps, 1), 1)) / 2


class PBT(Scheduler):
    """Population-based training (Jaderberg et al. 2017): trials that fall behind are replaced by forks.

    Every `interval_steps` a trial among the worst is stopped, and a fork of one among the best goes on from
    the latter's checkpoint with perturbed values. The population is `budget.trials`; forks come on top.
    """

    name: Literal["pbt"]
    interval_steps: int = Field(ge=1, description="Training steps between comparisons.")
    quantile: float = Field(
        0.25, gt=0, le=0.5, description="Share that is replaced, and share that is forked."
    )
    factor: float = Field(1.25, gt=1, description="A forked number is multiplied or divided by it.")
    resample: float = Field(0.25, ge=0, le=1, description="Probability that a value is drawn anew instead.")


class NoScheduler(Scheduler):
    """Every trial runs to its end."""

    name: Literal["none"]


AnyScheduler = Annotated[ASHA | HyperBand | Median | PBT | NoScheduler, Field(discriminator="name")]
