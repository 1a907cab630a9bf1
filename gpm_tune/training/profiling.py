"""The pace of an experiment on a device, measured without data and without a trained teacher."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from gpm_tune.data import Dataset
from gpm_tune.models import to_device
from gpm_tune.models.flow import Denoise
from gpm_tune.training.description import untrained_teacher
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.machine import CUDA_CONTEXT
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.teacher import freeze
from gpm_tune.training.trainer import Trainer

SECONDS = 2.0  # how long steps are measured, and at least two rounds of them


class GPUMemory(NamedTuple):
    """Bytes of a GPU: what steps and an evaluation take at most, and what it has."""

    step: int
    evaluation: int
    total: int


@dataclass(frozen=True)
class Pace:
    """Seconds that an experiment's parts take on a device, and a GPU's memory."""

    device: str
    step: float
    evaluation: float
    gpu_memory: GPUMemory | None = None


def measure_pace(experiment: Experiment, device: str, threads: int) -> Pace:
    """Time a few training steps and a part of an evaluation.

    The first round of steps is not counted: it warms up. Raises UserError where the feature network
    cannot be had.
    """
    torch.set_num_threads(threads)
    full = experiment.evaluated_samples
    part = min(full, max(2, experiment.evaluation.batch_size))
    evaluation = experiment.evaluation.model_copy(update={"samples": part})
    trainer = Profiler(experiment.model_copy(update={"evaluation": evaluation}), device=device)
    step = trainer.time_steps() if experiment.training.steps else 0.0
    if trainer.device.type != "cuda":
        name = f"the CPU, {threads} thread{'s' if threads > 1 else ''}"
        return Pace(name, step, trainer.time_evaluation() * full / part)
    of_steps = torch.cuda.max_memory_reserved(trainer.device) + CUDA_CONTEXT
    torch.cuda.reset_peak_memory_stats(trainer.device)
    whole_evaluation = trainer.time_evaluation() * full / part
    of_evaluation = torch.cuda.max_memory_reserved(trainer.device) + CUDA_CONTEXT
    gpu = torch.cuda.get_device_properties(trainer.device)
    memory = GPUMemory(of_steps, of_evaluation, gpu.total_memory)
    return Pace(gpu.name, step, whole_evaluation, memory)


class Profiler(Trainer):
    """A trainer on noise, with an untrained teacher: what it computes is worthless, and takes as long."""

    def _load_data(self) -> tuple[Dataset, str]:
        experiment = self.experiment
        train = self._noise(max(experiment.training.batch_size, experiment.model.kept_samples))
        held_out = self._noise(experiment.evaluation.samples or experiment.data.validation_samples)
        return Dataset(train, held_out, held_out), ""

    def _noise(self, count: int) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        shape = (count, *self.experiment.data.shape)
        if self.experiment.features:
            return torch.randint(256, shape, generator=rng, dtype=torch.uint8)
        return torch.randn(shape, generator=rng)

    def _load_teacher(self, teacher: SavedModel | None) -> Denoise | None:
        untrained = untrained_teacher(self.experiment)
        if untrained is None:
            return super()._load_teacher(teacher)
        return freeze(to_device(untrained.eval(), self.device))

    def time_steps(self) -> float:
        """Median seconds per step, over rounds of as many steps as a generator's turn takes."""
        turn = self.model.flow_steps

        def take_turn() -> None:
            for _ in range(turn):
                self.train_step()

        take_turn()
        rounds: list[float] = []
        while len(rounds) < 2 or sum(rounds) * turn < SECONDS:
            rounds.append(self._time(take_turn) / turn)
        return median(rounds)

    def time_evaluation(self) -> float:
        """Seconds of an evaluation."""
        return self._time(self._evaluate)

    def _time(self, work: Callable[[], object]) -> float:
        self._finish()
        started = time.perf_counter()
        work()
        self._finish()
        return time.perf_counter() - started

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
