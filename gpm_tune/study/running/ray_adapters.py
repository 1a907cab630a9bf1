"""Thin adapters between Ray Tune's interfaces and the controller, and the tuner that is made of them.

All decisions are made by the controller.
"""

# ruff: noqa: ARG002 (the signatures are Ray's)

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray import tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from gpm_tune.study.cluster.capacity import Capacity
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.study.running.controller import StudyController
from gpm_tune.study.running.messages import Order, Terms, TrialResult
from gpm_tune.study.running.trainable import TrialTrainable

LOOK_EVERY = 0.5  # seconds between looks around


class ControlledSearcher(Searcher):  # type: ignore[misc]
    """Starts the trials that the controller assigns, and tells it how each of them ended.

    A trial whose process was lost is ended for Tune, which must not retry it, and started again as
    another of Tune's: where a process is lost while Tune gives it a new trial, Tune fails that trial.
    """

    def __init__(self, controller: StudyController, room: Callable[[], int]) -> None:
        """room: for how many trials there is room at a time."""
        super().__init__()
        self._controller = controller
        self._room = room
        self._orders: dict[str, Order] = {}  # of live trials, by Tune's name for them
        self._gone: dict[str, list[str]] = {}  # nonces of processes that were at a training, by its key

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        places = self._room() - len(self._orders)
        if places < 1:
            return None
        spec = self._controller.assign(places)
        if spec is None:
            finished: str = Searcher.FINISHED  # for good: a live trial may come back
            return None if self._orders else finished
        gone = self._gone.get(spec.training, ())
        self._orders[trial_id] = Order(spec, uuid4().hex, tuple(gone))
        return {"order": self._orders[trial_id]}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        order = self._orders.pop(trial_id)
        self._gone.setdefault(order.trial.training, []).append(order.nonce)
        number = order.trial.number
        outcome: TrialResult | None = (result or {}).get("outcome")
        if error and self._controller.interrupted:
            self._controller.suspended(number)
        elif error:
            self._controller.lost(number)
        elif outcome is None or outcome.is_interrupted:
            self._controller.suspended(number)
        elif outcome.refused:
            self._controller.refuse(number, outcome.refused)
        elif outcome.failure:
            self._controller.ended(number, outcome.failure)
        else:
            _tell(self._controller, number, outcome)
            self._controller.ended(number, all_steps=outcome.is_end)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage is the source of truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage is the source of truth."""


class ControlledScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops the trials that the controller wants stopped."""

    def __init__(self, controller: StudyController) -> None:
        super().__init__()
        self._controller = controller
        self._looked = 0.0

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Called all the time: the moment to look at the clock, and at what others ask for."""
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = time.monotonic()
            trials = list(tune_controller.get_trials())
            self._controller.poll(sum(trial.status == Trial.RUNNING for trial in trials))
            if self._controller.interrupted:
                for trial in trials:
                    if trial.status == Trial.PENDING:  # its node may never come
                        trial.init_local_path()  # or Tune's results fail, of one that it has not begun with
                        tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        outcome: TrialResult = result["outcome"]
        stop = _tell(self._controller, trial.config["order"].trial.number, outcome) or outcome.is_interrupted
        decision: str = TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
        return decision


def build_tuner(
    study: StudyConfig,
    terms: Terms,
    controller: StudyController,
    stop_signal: Any,
    capacity: Callable[[], Capacity],
    scratch: Path,
) -> tune.Tuner:
    """What runs the trials that the controller assigns.

    capacity: of the cluster, now. scratch: a folder for what Tune writes, which nobody reads.
    """
    resources = study.resources
    # It complains at length of a full disk. What it would keep there is not used, and the study says more.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    # Tune would hand credentials to trials in a way that Ray logs. Nodes have their own.
    ENV_VARS_TO_PROPAGATE.difference_update({name for name in ENV_VARS_TO_PROPAGATE if "AWS" in name})

    def room() -> int:
        return capacity().trials_at_a_time(resources)

    # Trials that wait for a place are what makes an autoscaler start nodes, and cease to with the study. All
    # that there may be room for wait at the same time, for nodes that are then started together.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(1, room()))
    trainable = tune.with_parameters(TrialTrainable, stop_signal=stop_signal, terms=terms)
    return tune.Tuner(
        tune.with_resources(trainable, resources.for_ray),
        tune_config=tune.TuneConfig(
            search_alg=ControlledSearcher(controller, room),
            scheduler=ControlledScheduler(controller),
            num_samples=-1,  # the searcher says when to end
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher starts them again
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _tell(controller: StudyController, number: int, outcome: TrialResult) -> bool:
    """Tell what a trial has done. Returns whether it should be stopped here."""
    if outcome.departure:
        away = outcome.departure
        controller.leaves(number, away.reason, away.sick_node, is_loss=away.is_loss)
    if outcome.note:
        controller.noted(number, outcome.note)
    if outcome.gpu:
        controller.trained_on(number, outcome.gpu)
    if outcome.run:
        controller.trains(number, outcome.run)
    if outcome.step is None or outcome.measured is None:
        return False
    stops: bool = controller.measured(number, outcome.step, outcome.measured)
    return stops
