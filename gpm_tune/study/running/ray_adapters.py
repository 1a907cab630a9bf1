"""Thin adapters between Ray Tune's interfaces and the conductor, and the tuner that is made of them.

All decisions are made by the conductor.
"""

# ruff: noqa: ARG002 (the signatures are Ray's)

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from gpm_tune import locations
from gpm_tune.study.accounts.ledger import Assignment
from gpm_tune.study.cluster.capacity import Capacity
from gpm_tune.study.cluster.nodes import NodeReport
from gpm_tune.study.definition.specification import Study
from gpm_tune.study.running.conductor import Conductor
from gpm_tune.study.running.trainable import TrialTrainable
from gpm_tune.study.storage import trial_checkpoints
from gpm_tune.study.storage.home import Home

LOOK_EVERY = 0.5  # seconds between looks around


class ConductedSearcher(Searcher):  # type: ignore[misc]
    """Starts the trials that the conductor assigns, and tells it how each of them ended.

    A trial whose process was lost is ended for Tune, which must not retry it, and started again as
    another of Tune's: where a process is lost while Tune gives it a new trial, Tune fails that trial.
    """

    def __init__(self, conductor: Conductor, room: Callable[[], int], shared: Mapping[str, Any]) -> None:
        """room: for how many trials there is room at a time. shared: what the config of every trial holds
        besides its assignment.
        """
        super().__init__()
        self._conductor = conductor
        self._room = room
        self._shared = dict(shared)
        self._numbers: dict[str, int] = {}  # of live trials, by Tune's name for them
        self._handed_out: Counter[int] = Counter()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self._numbers) >= self._room():
            return None
        assignment = self._conductor.assign()
        if assignment is None:
            finished: str = Searcher.FINISHED  # for good: a live trial may come back
            return None if self._numbers else finished
        number = assignment.number
        self._numbers[trial_id] = number
        self._handed_out[number] += 1
        return _config(assignment, self._shared) | {"attempt": self._handed_out[number] - 1}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers.pop(trial_id)
        if error and self._conductor.interrupted:
            self._conductor.suspended(number)
        elif error:
            self._conductor.lost(number)
        elif result and "refused" in result:
            self._conductor.refuse(number, result["refused"])
        elif result is None or "interrupted" in result:
            self._conductor.suspended(number)
        elif "failure" in result:
            self._conductor.ended(number, result["failure"])
        else:
            _tell(self._conductor, number, result)
            self._conductor.ended(number, all_steps=result["all_steps"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage is the source of truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage is the source of truth."""


class ConductedScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops the trials that the conductor wants stopped."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor
        self._looked = 0.0

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Called all the time: the moment to look at the clock, and at what others ask for."""
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = time.monotonic()
            trials = list(tune_controller.get_trials())
            self._conductor.look_around(sum(trial.status == Trial.RUNNING for trial in trials))
            if self._conductor.interrupted:
                for trial in trials:
                    if trial.status == Trial.PENDING:  # its node may never come
                        trial.init_local_path()  # or Tune's results fail, of one that it has not begun with
                        tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = _tell(self._conductor, trial.config["number"], result) or "interrupted" in result
        decision: str = TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
        return decision


class CheckpointCallback(Callback):  # type: ignore[misc]
    """Tells the conductor about checkpoints that have reached the storage."""

    def __init__(self, conductor: Conductor, checkpoints: str) -> None:
        """checkpoints: where those of the study lie, as a location."""
        self._conductor = conductor
        self._checkpoints = checkpoints

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        pictures = (
            {f"samples/step_{result['step']:07d}.png": result["picture"]} if "picture" in result else {}
        )
        location = trial_checkpoints.location(self._checkpoints, info["checkpoint"].path)
        self._conductor.checkpointed(trial.config["number"], location, pictures)


def build_tuner(
    study: Study,
    home: Home,
    conductor: Conductor,
    switch: Any,
    capacity: Callable[[], Capacity],
    own: NodeReport | None,
) -> tune.Tuner:
    """What runs the trials that the conductor assigns.

    capacity: of the cluster, now. own: what nodes must have of software and data; None on a single machine.
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
    trainable = tune.with_parameters(TrialTrainable, switch=switch)
    checkpoints = home.checkpoints(study.name)
    files, folder = locations.opened(checkpoints)
    shared = {
        "objective": study.objective.model_dump(),
        "wanted": study.wanted,
        "cache": str(home.cache),
        "storage": home.storage,
        "checkpoints": checkpoints,
        "data": (study.base, conductor.data_fingerprint),
        "expected": own and (asdict(own), study.base),
        "threads": resources.cpu,
        "device": "cuda" if resources.gpu else "cpu",
        "time_limit": resources.time_limit,
    }
    return tune.Tuner(
        tune.with_resources(trainable, resources.for_ray),
        tune_config=tune.TuneConfig(
            search_alg=ConductedSearcher(conductor, room, shared),
            scheduler=ConductedScheduler(conductor),
            num_samples=-1,  # the searcher says when to end
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=trial_checkpoints.next_session(checkpoints, conductor.study_id),
            storage_path=folder,
            storage_filesystem=files,  # from the path alone Ray would make a URI, in which ? is none of it
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher starts them again
            # Trials say when to checkpoint: one that failed has nothing to keep. Old ones are ours to
            # delete: for `num_to_keep` Tune would write the state of all trials every other checkpoint.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[CheckpointCallback(conductor, checkpoints)],
            verbose=0,
        ),
    )


def _folder_name(trial: Trial) -> str:
    return trial_checkpoints.trial_folder(trial.config["number"], trial.config["attempt"])


def _config(assignment: Assignment, shared: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **shared,
        "number": assignment.number,
        "experiment": assignment.experiment.model_dump(mode="json"),
        "checkpoint": assignment.checkpoint,
    }


def _tell(conductor: Conductor, number: int, result: Mapping[str, Any]) -> bool:
    """Tell what a result holds. Returns whether the trial should be stopped here."""
    if "leaves" in result:
        conductor.leaves(number, result["leaves"], result["sick_node"], is_loss=result["is_loss"])
    if "note" in result:
        conductor.noted(number, result["note"])
    if "gpu" in result:
        conductor.trained_on(number, result["gpu"])
    return "step" in result and conductor.measured(number, result["step"], _metrics(result))


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result, whose nesting Tune has flattened with slashes."""
    prefix = "metrics/"
    return {key.removeprefix(prefix): v for key, v in result.items() if key.startswith(prefix)}
