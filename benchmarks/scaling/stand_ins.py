"""Trials that do not train, many of them in one process: what a study's driver has to do for them is real."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling.cases import Case
from gpm_tune.training import Evaluation, Experiment, Trainer
from gpm_tune.training.objectives import Measured

PING_EVERY = 0.5  # seconds between a trial's looks at the stop signal
START = 5.0  # seconds that the process of a trial takes to start


class StandIn:
    """A trainer that does not train: it measures and saves what a real one did."""

    template: Path

    best = None  # nothing is judged anew

    def __init__(self, experiment: Experiment, **_: Any) -> None:
        self._experiment = experiment
        self.step = self.evaluated_step = 0

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self._experiment.training.steps

    def run_interval(self, _should_stop: Callable[[], bool]) -> Evaluation:
        """The next evaluation."""
        self.step += self._experiment.evaluation.every
        self.evaluated_step = self.step
        found = Measured.model_validate_json((self.template / "measured.json").read_text())
        picture = (self.template / "samples.png").read_bytes()
        curve = {nfe: _perturbed(values) for nfe, values in found.curve.items()}
        return Evaluation(self.step, Measured(curve=curve, scalars=_perturbed(found.scalars)), picture)

    def save(self, folder: Path) -> None:
        """The checkpoint of a real trainer."""
        shutil.copytree(self.template / "checkpoint", folder, dirs_exist_ok=True)

    def restore(self, folder: Path) -> bool:
        """Continue at the step of a checkpoint's folder."""
        self.step = self.evaluated_step = int(folder.name.rpartition("_")[2])
        return True


def _perturbed(values: dict[str, float]) -> dict[str, float]:
    return {name: value * random.uniform(0.9, 1.1) for name, value in values.items()}


def make_template(folder: Path, experiment: Experiment) -> Path:
    """What a stand-in measures and saves."""
    folder.mkdir()
    trainer = Trainer(experiment)
    evaluation = trainer.run_interval()
    assert evaluation is not None
    (folder / "measured.json").write_text(evaluation.measured.model_dump_json())
    (folder / "samples.png").write_bytes(evaluation.picture)
    trainer.save(folder / "checkpoint")
    return folder


class Holder:
    """A process that holds many trials; each waits, as if it trained, and then does what a trial does."""

    def __init__(self, template: Path, pause: float) -> None:
        import gpm_tune.training.loop as module

        StandIn.template = template
        module.Trainer = StandIn  # type: ignore[misc, trial]
        self._pause = pause
        self._trials: dict[int, Any] = {}

    async def create(self, key: int, trainable: Any, arguments: dict[str, Any]) -> None:
        """Let a trial's process begin."""
        await asyncio.sleep(START)
        self._trials[key] = trainable(**arguments)

    async def call(self, key: int, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of a trial's object."""
        trial = self._trials.pop(key) if method == "stop" else self._trials[key]
        if method == "train":
            end = time.monotonic() + self._pause * random.uniform(0.5, 1.5)
            while (left := end - time.monotonic()) > 0:
                trial._interrupted()  # as training does
                await asyncio.sleep(min(left, PING_EVERY))
        return getattr(trial, method)(*arguments, **named)


@dataclass(frozen=True)
class Call:
    """A remote method of a holder, with its first arguments."""

    method: Any
    first: tuple[Any, ...]

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Call it."""
        return self.method.remote(*self.first, *arguments, **named)


class Actor:
    """Stands for an actor of its own: its methods are those of a trial in a holder."""

    def __init__(self, holder: Any, key: int, trainable: Any, arguments: dict[str, Any]) -> None:
        self._holder, self._key = holder, key
        self.__ray_ready__ = Call(holder.create, (key, trainable, arguments))

    def __getattr__(self, method: str) -> Call:
        return Call(self._holder.call, (self._key, method))


class ActorClass:
    """Stands for the trials' actor class: its actors are held by a few processes, in turns."""

    def __init__(self, case: Case, template: Path) -> None:
        self._case, self._template = case, template
        self._holders: list[Any] = []
        self._made = 0
        self._trainable: Any = None
        self.all_run_from = float("inf")  # once that many are made

    def replace_all(self) -> None:
        """Let Tune, in this process, start these actors from now on."""
        from ray.air.execution.resources.placement_group import PlacementGroupAcquiredResources as Acquired

        Acquired.annotate_remote_entities = lambda _, entities: [self.wrap(entities[0])]  # type: ignore[method-assign]

    def wrap(self, actor_class: Any) -> ActorClass:
        """In place of the actor class that Tune asks resources for."""
        import ray

        if not self._holders:
            self._trainable = ray.put(actor_class.__ray_metadata__.modified_class)
            make = ray.remote(num_cpus=0, max_concurrency=1000)(Holder).remote
            self._holders = [make(self._template, self._case.pause) for _ in range(self._case.processes)]
        return self

    def remote(self, **arguments: Any) -> Actor:
        """A new actor."""
        self._made += 1
        if self._made == self._case.at_a_time:
            self.all_run_from = time.perf_counter() + START + self._case.pause
        return Actor(self._holders[self._made % len(self._holders)], self._made, self._trainable, arguments)
