"""Optuna's samplers, as a study file chooses them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import optuna
from pydantic import Field

from gpm_tune.config import Config, Seed
from gpm_tune.study.definition import space
from gpm_tune.study.definition.distributions import MAX_VALUES


class Sampler(Config):
    """Where the values of the next trial come from; here independent random numbers."""

    several_objectives: ClassVar[bool] = True

    seed: Seed = Field(0, description="Seed of the sampler's random numbers.")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Optuna's sampler, with this seed in place of the configured one."""
        return optuna.samplers.RandomSampler(seed=seed)

    def proposals(self, base: Mapping[str, Any], searched: space.Space) -> list[space.Values] | None:
        """All trials there can be, in order; None where there is no end to them."""
        del base, searched
        return None


class TPE(Sampler):
    """Tree-structured Parzen estimator, Optuna's default: multivariate, aware of running trials."""

    name: Literal["tpe"]
    startup_trials: int = Field(10, ge=0, description="Random trials before the model is used.")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=self.startup_trials,
            multivariate=True,
            constant_liar=True,
        )


class GP(Sampler):
    """Bayesian optimisation with a Gaussian process: few, expensive trials in few dimensions."""

    name: Literal["gp"]
    startup_trials: int = Field(10, ge=0, description="Random trials before the model is used.")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=self.startup_trials, warn_independent_sampling=False
        )


class CMAES(Sampler):
    """Covariance matrix adaptation, for numbers; choices and conditional values are drawn at random."""

    several_objectives: ClassVar[bool] = False

    name: Literal["cmaes"]
    startup_trials: int = Field(1, ge=1, description="Random trials before the model is used.")
    with_pruned: bool = Field(False, description="Learn from trials that were stopped early, too.")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.CmaEsSampler(
            seed=seed,
            n_startup_trials=self.startup_trials,
            consider_pruned_trials=self.with_pruned,
            independent_sampler=optuna.samplers.RandomSampler(seed),
            warn_independent_sampling=False,
        )


class NSGA(Sampler):
    """Evolution of a population towards the Pareto front: nsga2 for two objectives, nsga3 for more."""

    name: Literal["nsga2", "nsga3"]
    population: int = Field(50, ge=2, description="Trials of a generation.")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)
        return optuna.samplers.NSGAIIISampler(seed=seed, population_size=self.population)


class Random(Sampler):
    """Independent random values."""

    name: Literal["random"]


class QuasiRandom(Sampler):
    """A scrambled Sobol sequence: random, but evenly spread."""

    name: Literal["quasi_random"]

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Optuna's sampler. The sequence goes on from the trials in the storage: its seed stays."""
        del seed
        return optuna.samplers.QMCSampler(
            seed=self.seed,
            scramble=True,
            independent_sampler=optuna.samplers.RandomSampler(self.seed),
            warn_independent_sampling=False,
            warn_asynchronous_seeding=False,
        )


# Optuna's own grid ends by a call that exists only where Optuna runs the trials, and knows no conditions.
class Grid(Sampler):
    """Every combination of evenly spaced values, in random order."""

    name: Literal["grid"]
    points: int = Field(5, ge=2, le=MAX_VALUES, description="Values of a range that has no step.")

    def proposals(self, base: Mapping[str, Any], searched: space.Space) -> list[space.Values]:
        """The combinations. Raises ValueError where there are too many to be listed."""
        return _shuffled(space.combinations(base, searched, self.points), self.seed)


class BruteForce(Sampler):
    """Every combination of all values that the ranges have, in random order."""

    name: Literal["brute_force"]

    def proposals(self, base: Mapping[str, Any], searched: space.Space) -> list[space.Values]:
        """The combinations. Raises ValueError where a range has no step, or there are too many."""
        return _shuffled(space.combinations(base, searched, None), self.seed)


AnySampler = Annotated[
    TPE | GP | CMAES | NSGA | Random | QuasiRandom | Grid | BruteForce, Field(discriminator="name")
]


def _shuffled(proposals: list[space.Values], seed: int) -> list[space.Values]:
    random.Random(seed).shuffle(proposals)
    return proposals
