"""The training loop: an experiment becomes a trained model, evaluated and checkpointed on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gpm_tune.data import GaussiansConfig, to_float
from gpm_tune.data.dataset import Batches, Dataset
from gpm_tune.errors import DivergedError, UserError
from gpm_tune.metrics import ImageMetrics, PointMetrics
from gpm_tune.models.discr_flow import DiscrFlow
from gpm_tune.training import checkpoint
from gpm_tune.training.experiment import Experiment, Objective
from gpm_tune.training.pictures import picture

CHECK_EVERY = 50  # steps between looks for NaN: each is a synchronisation with the device
SAMPLED_AT_ONCE = 500  # bounds the memory of an evaluation
POINTS_EVALUATED = 10_000
PICTURED = 64


@dataclass(frozen=True)
class Evaluation:
    """What was measured at a training step. Metrics at a given NFE are named `metric/nfe_n`."""

    step: int
    metrics: dict[str, float]
    picture: bytes  # PNG of the first samples


class Trainer:
    """One training run: a pure function of experiment and seed on one device, resumable anywhere.

    On the CPU a run that was saved at any step and restored continues bit for bit.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        device: torch.device | str = "cpu",
        objective: Objective | None = None,
        cache: Path | None = None,
    ) -> None:
        """Load the data and build the model.

        objective: what makes an evaluation the best; the experiment's default metric if None.
        cache: folder for statistics of the real data, shared between runs.
        Raises UserError where data or feature network cannot be had, or a batch exceeds the data.
        """
        self.experiment = experiment
        self.objective = objective or experiment.default_objective
        self.device = torch.device(device)
        data = experiment.data.load(experiment.seed)
        self._real = data.train.to(self.device)
        self._batches = self._plan_batches(len(data.train))
        self._metrics, self._samples = self._build_metrics(data, cache)
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            self.model: DiscrFlow = experiment.model.build(experiment.data.shape).to(self.device)
        optimizer = experiment.training.optimizer
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=optimizer.lr, betas=optimizer.betas)
        decay = experiment.training.ema
        self._average = _average(self.model, decay) if decay else None
        self._rng = torch.Generator(self.device).manual_seed(experiment.seed)
        self.step = 0
        self.evaluated_step = 0
        self.seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self.best: Evaluation | None = None
        self._best_weights: dict[str, Tensor] = {}
        self.last: Evaluation | None = None

    def _plan_batches(self, size: int) -> Batches:
        batch_size = self.experiment.training.batch_size
        if batch_size > size:
            raise UserError(
                f"training.batch_size is {batch_size}, but data "
                f"'{self.experiment.data.name}' has {size} training samples"
            )
        return Batches(size, batch_size, self.experiment.seed, self.device)

    def _build_metrics(self, data: Dataset, cache: Path | None) -> tuple[ImageMetrics | PointMetrics, int]:
        evaluation, reference = self.experiment.evaluation, data.validation
        if self.experiment.features is None:
            mixture = self.experiment.data
            assert isinstance(mixture, GaussiansConfig)
            samples = min(evaluation.samples or POINTS_EVALUATED, len(reference))
            points = reference[:samples].to(self.device)
            return PointMetrics(points, mixture.means.to(self.device), mixture.std), samples
        metrics = ImageMetrics(
            to_float(reference),
            self.experiment.features,
            weights=evaluation.inception_weights,
            cache=cache,
            device=self.device,
        )
        return metrics, evaluation.samples or len(reference)

    @property
    def done(self) -> bool:
        """Whether the last evaluation has been made."""
        return self.evaluated_step >= self.experiment.training.steps

    @property
    def evaluated_model(self) -> DiscrFlow:
        """The model with the weights that are measured: averaged ones where there are some."""
        return cast("DiscrFlow", self._average.module) if self._average else self.model

    def run_interval(self, should_stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """Train up to the next evaluation and evaluate; None if asked to stop before.

        Raises DivergedError where losses or samples are no longer finite.
        """
        every = self.experiment.evaluation.every
        end = min(
            self.evaluated_step - self.evaluated_step % every + every,
            self.experiment.training.steps,
        )
        while self.step < end:
            if should_stop():
                return None
            self._train_until(min(self.step - self.step % CHECK_EVERY + CHECK_EVERY, end), should_stop)
        return self._evaluate()

    def _train_until(self, end: int, should_stop: Callable[[], bool]) -> None:
        started = time.perf_counter()
        while self.step < end and not should_stop():
            self._train_step()
        self.seconds += time.perf_counter() - started
        for name, total in self._sums.items():
            if not torch.isfinite(total):
                raise DivergedError(f"loss/{name} was not finite at or before step {self.step}")

    def _train_step(self) -> None:
        real = to_float(self._real[self._batches.indices(self.step)])
        terms = self.model.loss(real, self._rng)
        self._optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        self._optimizer.step()
        if self._average:
            self._average.update_parameters(self.model)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0) + term.detach()
        self.step += 1

    def _evaluate(self) -> Evaluation:
        """Measure the model at every NFE asked for, with the same particles at each evaluation."""
        rng = torch.Generator(self.device).manual_seed(self.experiment.seed)
        sets = self._sample(rng)
        metrics: dict[str, float] = {}
        for nfe, samples in sets.items():
            for name, value in self._metrics(samples).items():
                metrics[f"{name}/nfe_{nfe}"] = value
        full = max(sets)
        metrics |= {name: metrics[f"{name}/nfe_{full}"] for name in self.experiment.metrics}
        interval = self.step - self.evaluated_step
        losses = {f"loss/{name}": total.item() / interval for name, total in self._sums.items()}
        metrics |= losses | {"nfe": full, "seconds": self.seconds}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(f"{name} was {value} at step {self.step}")
        self._sums, self.evaluated_step = {}, self.step
        self.last = Evaluation(self.step, metrics, picture(sets[full][:PICTURED].cpu()))
        self._keep_best(self.last)
        return self.last

    def _sample(self, rng: torch.Generator) -> dict[int, Tensor]:
        """NFE -> that many samples, of the averaged weights where there are some."""
        model = self.evaluated_model
        nfe = [n for n in self.experiment.evaluation.nfe if n <= model.config.sampling_steps]
        parts: dict[int, list[Tensor]] = {}
        for start in range(0, self._samples, SAMPLED_AT_ONCE):
            count = min(SAMPLED_AT_ONCE, self._samples - start)
            for cost, particles in model.sample(count, rng, nfe):
                parts.setdefault(cost, []).append(particles)
        return {cost: torch.cat(particles) for cost, particles in parts.items()}

    def _keep_best(self, evaluation: Evaluation) -> None:
        metric = self.objective.metric
        value = evaluation.metrics[metric]
        before = self.best.metrics[metric] if self.best else self.objective.worst
        if self.objective.better(value, before):
            self.best = evaluation
            self._best_weights = {k: v.clone() for k, v in self.evaluated_model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write everything that continuing needs, and the best weights so far, into the folder."""
        weights = {"last": self.model.state_dict(), "best": self._best_weights}
        state: dict[str, Any] = {
            "optimizer": self._optimizer.state_dict(),
            "rng": self._rng.get_state(),
            "sums": self._sums,
        }
        if self._average:
            weights["average"] = self._average.state_dict()
        record = {
            "experiment": self.experiment.model_dump(mode="json"),
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "seconds": self.seconds,
            "best": self.best and {"step": self.best.step, "metrics": self.best.metrics},
        }
        pictures = {"samples": self.last, "best": self.best}
        checkpoint.write(folder, weights, state, record, {k: e.picture for k, e in pictures.items() if e})

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote for the same experiment.

        Raises UserError where the folder holds no whole checkpoint.
        """
        weights, state, record, pictures = checkpoint.read(folder, self.device)
        self.model.load_state_dict(weights["last"])
        if self._average:
            self._average.load_state_dict(weights["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.set_state(state["rng"].cpu())
        self._sums = state["sums"]
        self._best_weights = weights.get("best", {})
        self.step, self.evaluated_step = record["step"], record["evaluated_step"]
        self.seconds = record["seconds"]
        if record["best"]:
            best = record["best"]
            self.best = Evaluation(best["step"], best["metrics"], pictures["best"])


def _average(model: DiscrFlow, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
