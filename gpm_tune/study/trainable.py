"""A trial on a Ray worker: the training loop, one evaluation interval a step."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from gpm_tune.errors import DivergedError, UserError
from gpm_tune.training import Experiment, Objective, Trainer

POLL_SECONDS = 0.5  # how often a trial looks whether the study was interrupted


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
    """Whether the study was interrupted, by a look at the switch now and then; once seen, it stays seen."""

    def __init__(self, switch: Any) -> None:
        self._switch = switch
        self._next_look = 0.0
        self._seen = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._switch is not None and not self._seen and now >= self._next_look:
            self._next_look = now + POLL_SECONDS
            self._seen = bool(ray.get(self._switch.is_on.remote()))
        return self._seen


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Ray's view of a `Trainer`.

    Its config: `experiment` and `objective` as plain data, `wanted` metrics, `checkpoint` to continue
    from or None, `cache` folder, `threads`, `device`. A result has `step` and `metrics`, or `failure` with a
    reason, or `interrupted`. Exceptions become failures: only a lost process is worth a retry.
    """

    def setup(self, config: dict[str, Any], switch: Any = None) -> None:
        self._interrupted = Interruption(switch)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over another trial, in the same process."""
        self._trial = new_config
        self._trainer: Trainer | None = None
        torch.set_num_threads(new_config["threads"])
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation, or until the study is interrupted."""
        if self._trainer is None and self._interrupted():
            return {"interrupted": True}
        try:
            if self._trainer is None:
                self._trainer = self._build(self._trial["checkpoint"])
            evaluation = self._trainer.run_interval(self._interrupted)
        except (DivergedError, UserError) as error:
            return {"failure": str(error), "done": True}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            return {"failure": reason, "done": True}
        if evaluation is None:
            return {"interrupted": True, "should_checkpoint": True}
        return {
            "step": evaluation.step,
            "metrics": evaluation.metrics,
            "all_steps": self._trainer.done,  # `done` is also true of a trial that is stopped
            "done": self._trainer.done,
            "should_checkpoint": True,
        }

    def _build(self, checkpoint: str | None) -> Trainer:
        trainer = Trainer(
            Experiment.model_validate(self._trial["experiment"]),
            device=self._trial["device"],
            objective=Objective.model_validate(self._trial["objective"]),
            wanted=self._trial["wanted"],
            cache=Path(self._trial["cache"]),
        )
        if checkpoint:
            trainer.restore(Path(checkpoint))
        return trainer

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        assert self._trainer is not None, "a checkpoint is asked for by results of a trainer only"
        self._trainer.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:
        self._trainer = self._build(checkpoint)
