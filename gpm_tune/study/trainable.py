"""A trial on a Ray worker: the training loop, one evaluation interval a step."""

from __future__ import annotations

import gc
import re
import time
import traceback
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from gpm_tune.errors import DivergedError, UserError
from gpm_tune.study import trial_checkpoints
from gpm_tune.study.time_limit import TimeLimit
from gpm_tune.training import Experiment, Objective, Trainer
from gpm_tune.training.resuming import resume

POLL_SECONDS = 0.5  # how often a trial looks whether the study was interrupted
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)


@ray.remote(num_cpus=0)
class Switch:
    """Tells every trial that the study was interrupted."""

    def __init__(self) -> None:
        self._on = False

    def turn_on(self) -> None:
        """Ask all trials to checkpoint and stop."""
        self._on = True

    def is_on(self) -> bool:
        """Whether trials should stop."""
        return self._on


class Interruption:
    """Whether the study was interrupted, by a look at the switch now and then; once seen, it stays seen.

    The first look waits for the answer. Later ones find it at the next call: training does not wait.
    """

    def __init__(self, switch: Any) -> None:
        self._switch = switch
        self._next_look = 0.0
        self._answer: Any = None
        self._seen = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._switch is None or self._seen or now < self._next_look:
            return self._seen
        is_first = self._next_look == 0.0
        self._next_look = now + POLL_SECONDS
        if self._answer is None:
            self._answer = self._switch.is_on.remote()
        if is_first or ray.wait([self._answer], timeout=0)[0]:
            self._seen = bool(ray.get(self._answer))
            self._answer = None if self._seen else self._switch.is_on.remote()
        return self._seen


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Ray's view of a `Trainer`.

    Its config: `number`, `experiment` and `objective` as plain data, `wanted` metrics, `checkpoint` to
    continue from or None, `cache` folder, `threads`, `device`, `time_limit`. A result has `step` and
    `metrics`, or `failure` with a reason, or `interrupted`; and a `note` where the trial did not
    continue where it should have.
    Exceptions become failures: only a lost process is worth a retry.
    """

    def setup(self, config: dict[str, Any], switch: Any = None) -> None:
        self._interrupted = Interruption(switch)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over another trial, in the same process."""
        self._trial = new_config
        self._checkpoint: str | None = new_config["checkpoint"]
        self._note: str | None = None
        session = self._storage.experiment_fs_path if self._storage else self.logdir
        file = Path(session) / trial_checkpoints.trial_folder(new_config["number"]) / "hang.txt"
        self._limit = TimeLimit(new_config["time_limit"], file)
        self._forget()
        torch.set_num_threads(new_config["threads"])
        return True

    def _forget(self) -> None:
        """Free the memory of a trial that has ended, for the next one in this process."""
        self._trainer: Trainer | None = None
        gc.collect()
        torch.cuda.empty_cache()

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation, or until the study is interrupted."""
        failure = self._limit.verdict
        if failure is None:
            try:
                with self._limit.watch():
                    return self._interval()
            except Exception as error:
                failure = reason_of(error, Experiment.model_validate(self._trial["experiment"]))
        self._forget()
        return {"failure": failure, "done": True}

    def _interval(self) -> dict[str, Any]:
        if self._trainer is None:
            if self._interrupted():
                return {"interrupted": True}
            self._trainer = self._build()
        evaluation = self._trainer.run_interval(self._interrupted)
        note = {"note": self._note} if self._note else {}
        if evaluation is None:
            return {"interrupted": True, "should_checkpoint": True, **note}
        return {
            "step": evaluation.step,
            "metrics": evaluation.metrics,
            "all_steps": self._trainer.done,  # `done` is also true of a trial that is stopped
            "done": self._trainer.done,
            "should_checkpoint": True,
            **note,
        }

    def _build(self) -> Trainer:
        trainer = Trainer(
            Experiment.model_validate(self._trial["experiment"]),
            device=self._trial["device"],
            objective=Objective.model_validate(self._trial["objective"]),
            wanted=self._trial["wanted"],
            cache=Path(self._trial["cache"]),
        )
        if self._checkpoint:
            self._note = resume(trainer, trial_checkpoints.newest_first(Path(self._checkpoint)))
        return trainer

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Write a checkpoint and copy it to the storage, which may hang as everything else."""
        with self._limit.watch():
            return super().save(checkpoint_dir)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        assert self._trainer is not None, "a checkpoint is asked for by results of a trainer only"
        self._trainer.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Continue from there with the next step: what fails then is the trial's failure, and no loss."""
        self._checkpoint = checkpoint
        self._trainer = None


def reason_of(error: Exception, experiment: Experiment) -> str:
    """Why a trial failed, in a sentence."""
    if isinstance(error, DivergedError | UserError):
        return str(error)
    text = str(error)
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if is_memory or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)):
        return (
            f"out of memory: {text.splitlines()[0] if text else 'Python could not allocate'} Lower "
            f"training.batch_size ({experiment.training.batch_size}) or evaluation.batch_size "
            f"({experiment.evaluation.batch_size}), search smaller networks, or let fewer trials share "
            "a GPU: raise resources.gpu"
        )
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"
