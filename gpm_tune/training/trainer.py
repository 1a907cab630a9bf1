"""The training loop: an experiment becomes a trained model, evaluated and checkpointed on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gpm_tune.data import Dataset, to_float
from gpm_tune.data.dataset import Batches
from gpm_tune.data.fingerprint import read
from gpm_tune.errors import DivergedError
from gpm_tune.metrics import FeatureExtractor, Points, Quality, Real
from gpm_tune.models import ParticleModel, SamplingOptions, to_device
from gpm_tune.models.flow import Denoise, FlowInputs, Terms, evaluating
from gpm_tune.models.particle_model import DEFAULT_SAMPLING
from gpm_tune.training import checkpoint, fitting
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.machine import Machine, has_bfloat16, keep_freed_memory, limit_threads
from gpm_tune.training.objectives import Measured, Objective, hypervolume
from gpm_tune.training.pictures import picture
from gpm_tune.training.saved import SavedModel, refuse_other_data
from gpm_tune.training.teacher import load_teacher

CHECK_EVERY = 50  # steps between looks for NaN: each is a synchronisation with the device
SAMPLED_AT_ONCE = 500  # outside of training
PICTURED = 64
FRAMING = 1000  # points of the data that set the frame of all pictures of a run


@dataclass(frozen=True)
class Evaluation:
    """What was measured at a training step."""

    step: int
    measured: Measured
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
        teacher: SavedModel | None = None,
    ) -> None:
        """Load the data and build the model.

        objective: what makes an evaluation the best; the experiment's default metric if None.
        cache: folder for statistics of the real data, shared between runs.
        teacher: of a model that has one.
        Raises UserError where data or feature network cannot be had, the data are too few, or the teacher
        is missing.
        """
        self.experiment = experiment
        self.objective = objective or experiment.default_objective
        self.device = torch.device(device)
        keep_freed_memory()
        limit_threads()
        precision = experiment.training.precision
        self._bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16(self.device))
        data, self.data_fingerprint = self._load_data()
        self._real = data.train.to(self.device)
        experiment.check_samples(len(data.train))
        self._batches = Batches(len(data.train), experiment.training.batch_size, experiment.seed, self.device)
        self._framing = None if experiment.features else data.validation[:FRAMING]
        self._quality = build_quality(experiment, experiment.metrics, data, "validation", cache, self.device)
        self._samples = experiment.samples_beside(len(data.validation))
        self.model = self._build_model(teacher)
        self._optimizers = self._build_optimizers()
        self._average = self._build_average() if experiment.training.ema else None
        self._rng = torch.Generator(self.device).manual_seed(experiment.seed)
        self.step = 0
        self.evaluated_step = 0
        self.seconds = 0.0
        self._timed_from = (0, 0.0)  # step and seconds where this interval began, or was continued
        self._machine = Machine(self.device)
        self._means: dict[str, RunningMean] = {}
        self.best: checkpoint.Best | None = None
        self._best_weights: dict[str, Tensor] = {}

    def _load_data(self) -> tuple[Dataset, str]:
        """The data, and the fingerprint of what was read."""
        return read(self.experiment.data, self.experiment.seed)

    def _load_teacher(self, teacher: SavedModel | None) -> Denoise | None:
        return load_teacher(self.experiment, teacher, self.device, self.data_fingerprint)

    def _build_model(self, teacher: SavedModel | None) -> ParticleModel:
        experiment = self.experiment
        kept = experiment.model.kept_samples
        inputs = FlowInputs(to_float(self._real[:kept]) if kept else None, self._load_teacher(teacher))
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            model = experiment.model.build(experiment.data.shape, inputs)
        return to_device(model, self.device)

    def _build_optimizers(self) -> dict[str, torch.optim.Adam]:
        """One for each part of the model, flow and generator, that has parameters which are not frozen."""
        training = self.experiment.training
        return {
            name: torch.optim.Adam(learning, **training.optimizer_of(name).model_dump(), fused=True)
            for name, part in self.model.parts.items()
            if (learning := [parameter for parameter in part.parameters() if parameter.requires_grad])
        }

    def _build_average(self) -> AveragedModel:
        def update(averages: Any, weights: Any, count: Any) -> None:
            # The decay grows with the steps, or the initial weights would be a part of short averages.
            decay = min(self.experiment.training.ema or 0.0, (1 + self.step) / (10 + self.step))
            get_ema_multi_avg_fn(decay)(averages, weights, count)

        return AveragedModel(self.model, multi_avg_fn=update, use_buffers=True)

    @property
    def done(self) -> bool:
        """Whether the last evaluation has been made, which every run has at least one of."""
        return self.best is not None and self.evaluated_step >= self.experiment.training.steps

    @property
    def evaluated_model(self) -> ParticleModel:
        """The model with the weights that are measured: averaged ones where there are some."""
        return cast("ParticleModel", self._average.module) if self._average else self.model

    def run_interval(self, should_stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """Train up to the next evaluation and evaluate; None if asked to stop before.

        Raises DivergedError where losses or samples are no longer finite.
        """
        every = self.experiment.evaluation.every
        end = min(
            self.evaluated_step - self.evaluated_step % every + every,
            self.experiment.training.steps,
        )
        self.train_until(end, should_stop)
        return self._evaluate() if self.step == end else None

    def train_until(self, end: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train up to a step, unless asked to stop before, without an evaluation.

        Raises DivergedError where losses are no longer finite.
        """
        while self.step < end and not should_stop():
            self._train_and_check(min(self.step - self.step % CHECK_EVERY + CHECK_EVERY, end), should_stop)

    def _train_and_check(self, end: int, should_stop: Callable[[], bool]) -> None:
        started = time.perf_counter()
        with torch.random.fork_rng():
            while self.step < end and not should_stop():
                self.train_step()
        # This look waits for the device: only then have the steps taken their time.
        infinite = [name for name, mean in self._means.items() if not torch.isfinite(mean.total)]
        self.seconds += time.perf_counter() - started
        if infinite:
            raise DivergedError(f"loss/{infinite[0]} was not finite at or before step {self.step}")

    def train_step(self) -> None:
        """A step of the flow's network, and, if it is its turn, one of the generator (Algorithm 1)."""
        # Dropout draws from torch's global random state: a function of seed and step, as the batches.
        torch.manual_seed(self.experiment.seed * 2**32 + self.step)
        model = self.model
        if "flow" in self._optimizers:
            self.fit_flow()
        if "generator" in self._optimizers and (self.step + 1) % model.flow_steps == 0:
            with self._precision():
                terms = model.generator_loss(self.experiment.training.batch_size, self._rng)
            self._descend("generator", terms)
        if self._average:
            self._average.update_parameters(model)
        self.step += 1

    def fit_flow(self) -> Terms:
        """One optimiser step of the flow's network alone; returns the terms of its loss before the step."""
        real = to_float(self._real[self._batches.indices(self.step)])
        with self._precision():
            terms = self.model.fit(real, self._rng)
        self._descend("flow", terms)
        return terms

    def _precision(self) -> torch.autocast:
        """Of what runs within; cast weights are kept until its end, so an optimiser's step is outside."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16)

    def reseed(self, seed: int) -> None:
        """Draw particles and noise from another seed than the experiment's, from here on."""
        self._rng.manual_seed(seed)

    def _descend(self, part: str, terms: Terms) -> None:
        """One optimiser step of a part of the model along the sum of its loss's terms."""
        optimizer = self._optimizers[part]
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        for name, term in terms.items():
            self._means[name] = self._means.get(name, NO_MEAN).add(term.detach())

    def _evaluate(self) -> Evaluation:
        """Measure the model at every NFE asked for, with the same particles at each evaluation."""
        rng = torch.Generator(self.device).manual_seed(self.experiment.seed)
        asked = self.experiment.evaluation
        options = SamplingOptions(nfe=asked.nfe)
        self.evaluated_model.weights_changed()
        sets = draw(self.evaluated_model, self._samples, rng, options, at_once=asked.batch_size)
        curve = {nfe: self._quality(samples) for nfe, samples in sets.items()}
        scalars = {f"loss/{name}": mean.total.item() / mean.terms for name, mean in self._means.items()}
        scalars |= {"seconds": self.seconds, "parameters": float(self._trained_parameters())}
        scalars |= self._throughput() | self._machine.measure() | {"system/bfloat16": float(self._bfloat16)}
        # Not validated yet: numbers that are not finite are to be named.
        measured = Measured.model_construct(curve=curve, scalars=scalars)
        for name, value in measured.as_text().items():
            if not math.isfinite(value):
                raise DivergedError(f"{name} was {value} at step {self.step}")
        scalars |= self._hypervolumes(measured)
        self._means, self.evaluated_step = {}, self.step
        shown = picture(sets[measured.nfe][:PICTURED].cpu(), real=self._framing)
        self._keep_best(checkpoint.Best(step=self.step, curve=curve, scalars=scalars))
        return Evaluation(self.step, Measured(curve=curve, scalars=scalars), shown)

    def _hypervolumes(self, measured: Measured) -> dict[str, float]:
        """Of each metric's curve, where the experiment has a corner for them."""
        corner, modes = self.experiment.evaluation.reference, self.experiment.metrics
        if corner is None:
            return {}
        volumes = {name: hypervolume(measured.along_nfe(name), mode, corner) for name, mode in modes.items()}
        return {f"{name}/hypervolume": volume for name, volume in volumes.items()}

    def _throughput(self) -> dict[str, float]:
        """Steps per second since the last evaluation."""
        step, seconds = self._timed_from
        self._timed_from = (self.step, self.seconds)
        if self.seconds == seconds:
            return {}
        return {"steps_per_second": (self.step - step) / (self.seconds - seconds)}

    def _trained_parameters(self) -> int:
        trained = [p for o in self._optimizers.values() for group in o.param_groups for p in group["params"]]
        return sum(parameter.numel() for parameter in trained)

    def _keep_best(self, found: checkpoint.Best) -> None:
        before = self.objective.value_of(self.best) if self.best else self.objective.worst
        if self.objective.better(self.objective.value_of(found), before):
            self.best = found
            self._best_weights = {k: v.clone() for k, v in self.evaluated_model.state_dict().items()}

    @property
    def judge(self) -> str:
        """Identifies by what the best weights are chosen: how they are measured, and for which objective."""
        return self.experiment.judge(self.objective)

    def judge_anew(self) -> Iterator[Evaluation]:
        """Measure the weights that another judge has kept, its best and its last, by the own judge."""
        kept, step, evaluated_step, means = self.best, self.step, self.evaluated_step, self._means
        assert kept is not None, "a judge has kept them"
        last = {name: tensor.clone() for name, tensor in self.evaluated_model.state_dict().items()}
        found = {kept.step: self._best_weights} | ({step: last} if step == evaluated_step else {})
        self.best = None
        for self.step, weights in found.items():
            self._means = {}
            self.evaluated_model.load_state_dict(weights)
            yield self._evaluate()
        self.evaluated_model.load_state_dict(last)
        self.step, self.evaluated_step, self._means = step, evaluated_step, means

    def save(self, folder: Path) -> None:
        """Write everything that continuing needs, and the best weights so far, into the folder."""
        weights = {"last": self.model.state_dict(), "best": self._best_weights}
        state: dict[str, Any] = {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "rng": self._rng.get_state(),
            "means": {name: tuple(mean) for name, mean in self._means.items()},
        }
        if self._average:
            weights["average"] = self._average.state_dict()
        record = {
            "experiment": self.experiment.model_dump(mode="json"),
            "data": self.data_fingerprint,
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "seconds": self.seconds,
            "joules": self._machine.joules,
            "is_end": self.done,
            "judge": self.judge,
            "best": self.best and self.best.model_dump(),
        }
        checkpoint.write(folder, weights, state, record)

    def restore(self, folder: Path) -> bool:
        """Continue from what `save` wrote, for the same experiment or one with the same networks.

        Returns whether its best weights were chosen by the same judge. Raises UserError where the folder
        holds no whole checkpoint, OtherDataError where data have changed.
        """
        weights, state, record = checkpoint.read(folder, self.device)
        refuse_other_data(folder, record, self.experiment.data, self.data_fingerprint)
        try:
            self._check_fit(weights, state, record)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise checkpoint.damaged(folder, error) from error
        self.model.load_state_dict(weights["last"])
        if self._average:
            self._average.load_state_dict(weights["average"])
        for name, optimizer in self._optimizers.items():
            saved = state["optimizers"][name]
            # A fork of another trial has hyperparameters of its own.
            for theirs, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                theirs.update({key: value for key, value in own.items() if key != "params"})
            optimizer.load_state_dict(saved)
            for parameter, moments in optimizer.state.items():
                # A fused optimiser goes through memory, whatever the formats that it finds there.
                for key in fitting.MOMENTS:
                    moments[key] = torch.empty_like(parameter).copy_(moments[key])
        self._means = {name: RunningMean(*mean) for name, mean in state["means"].items()}
        self._best_weights = weights.get("best", {})
        self.step, self.evaluated_step = record.step, record.evaluated_step
        self._restore_rng(state["rng"].cpu())
        self.seconds = record.seconds
        self._machine.joules = record.joules
        self._timed_from = (self.step, self.seconds)
        self.best = record.best
        return record.judge == self.judge

    def _check_fit(self, weights: checkpoint.Weights, state: Any, record: checkpoint.Record) -> None:
        """Raise an error unless all that a checkpoint holds can be loaded."""
        fitting.check_weights(weights["last"], self.model.state_dict(), "last")
        if self._average:
            fitting.check_weights(weights["average"], self._average.state_dict(), "average")
        if record.best:
            fitting.check_weights(weights["best"], self.evaluated_model.state_dict(), "best")
        fitting.check_optimizers(state["optimizers"], self._optimizers)
        fitting.check_means(state["means"])
        fitting.check_rng(state["rng"], self._rng)

    def _restore_rng(self, state: Tensor) -> None:
        if state.numel() == self._rng.get_state().numel():
            self._rng.set_state(state)
        else:  # of another kind of device, whose random numbers cannot be continued here
            self.reseed(self.experiment.seed + self.step)


def build_quality(
    experiment: Experiment,
    metrics: Iterable[str],
    data: Dataset,
    split: str,
    cache: Path | None,
    device: torch.device,
) -> Quality:
    """These metrics of an experiment's samples, against a split of its data.

    cache: a folder for what is computed of real images, shared between processes.
    Raises UserError where the feature network cannot be had, or the split has too few samples.
    """
    reference = getattr(data, split)
    network = experiment.feature_network
    if network is None:
        means, std = experiment.modes
        points = reference[: experiment.evaluated_samples]
        return Quality(metrics, Real(points, Points(device), means=means, std=std))
    weights = experiment.evaluation.inception_weights
    extract = FeatureExtractor(network, weights, device)
    training = None if split == "train" else lambda: to_float(data.train)
    return Quality(metrics, Real(to_float(reference), extract, training=training, cache=cache))


class RunningMean(NamedTuple):
    """Of a loss term over the steps that had it since the last evaluation."""

    total: Tensor
    terms: int

    def add(self, term: Tensor) -> RunningMean:
        """With one more term."""
        return RunningMean(self.total + term, self.terms + 1)


NO_MEAN = RunningMean(torch.tensor(0.0), 0)


def draw(
    model: ParticleModel,
    count: int,
    rng: torch.Generator,
    options: SamplingOptions = DEFAULT_SAMPLING,
    *,
    at_once: int = SAMPLED_AT_ONCE,
) -> dict[int, Tensor]:
    """NFE -> that many samples (count, *shape) in evaluation mode; see `ParticleModel.sample`.

    at_once: bounds the memory; other batches have other random numbers.
    """
    parts: dict[int, list[Tensor]] = {}
    with evaluating(model):
        for start in range(0, count, at_once):
            for cost, x in model.sample(min(at_once, count - start), rng, options):
                parts.setdefault(cost, []).append(x)
    return {cost: torch.cat(x) for cost, x in parts.items()}
