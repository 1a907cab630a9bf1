"""The experiment: everything that one training run needs. The single source of truth for its keys."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from torch import Tensor

from gpm_tune.config import INFERENCE_ONLY, Config, Seed, nearest
from gpm_tune.data import DataConfig
from gpm_tune.data.fingerprint import fingerprint
from gpm_tune.documents import reason
from gpm_tune.errors import UserError
from gpm_tune.metrics import DEFAULTS, METRICS, Mode, available
from gpm_tune.metrics.features import FEATURES_ADVICE, IN_FILES
from gpm_tune.models import ModelConfig
from gpm_tune.models.configuration import TeacherConfig
from gpm_tune.paths import LocalPath
from gpm_tune.training.objectives import WORDS, Named, Objective, Reference

POINTS_EVALUATED = 10_000
NETWORKS = ("small", "inception")
LONGEST_LABEL = 40  # in the name of a folder
DATA_DIGITS = 4  # of a training's digest: its last ones


class OptimizerConfig(Config):
    """Adam, for one of the networks."""

    paper: ClassVar[str] = "appendices A.3, D.2"

    lr: float = Field(2e-4, gt=0, description="Learning rate.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.5, 0.999), description="Decay rates of the moment estimates."
    )


class TrainingConfig(Config):
    """How long and how the model is trained."""

    paper: ClassVar[str] = "appendix D.2"

    steps: int = Field(
        ge=0,
        description="Optimiser iterations of the flow's network; a generator's follow every n_D-th, or "
        "K-th, of them. 0 for a model in which there is nothing to train.",
    )
    batch_size: int = Field(128, ge=1, description="Real samples per step, and generated ones.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of matrix products and convolutions in training steps; weights, losses, "
        "optimisers and evaluations stay in float32. auto: bfloat16 where the GPU, or the CPU "
        "(AVX-512 BF16 or AMX), computes with it, else float32.",
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Optimiser of the flow's network.")
    generator_optimizer: OptimizerConfig | None = Field(
        None, description="Optimiser of the generator; null for the same as the flow's network."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay per step of an average of the weights, which is then evaluated, at most "
        "(1 + step) / (10 + step); null for none, as in the paper (D.2).",
    )

    def optimizer_of(self, part: str) -> OptimizerConfig:
        """The optimiser of a part of the model, `flow` or `generator`."""
        own = self.generator_optimizer if part == "generator" else None
        return own or self.optimizer


class EvaluationConfig(Config):
    """When and how the model is measured, always on the validation set."""

    paper: ClassVar[str] = "appendices C.5, D.1"

    every: int = Field(1000, ge=1, description="Training steps between evaluations.")
    nfe: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Further NFE at which every metric is reported, by stopping the path early, "
        "or on a coarser grid where the model knows every grid; values beyond its full NFE are left out.",
    )
    samples: int | None = Field(
        None,
        ge=2,
        description="Generated samples; null for as many as the validation set has, 10,000 for points.",
    )
    batch_size: int = Field(500, ge=1, description="Samples generated at a time: bounds the memory.")
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="What is measured of samples; the first is the objective where a study names none. "
        "null for fid, and for points all of theirs.",
    )
    features: Literal["small", "inception"] | LocalPath | None = Field(
        None,
        description="Network whose activations FID and others compare: the standard Inception-v3; the "
        "small bundled one, which was trained on MNIST; or that in a local file, DINOv2's weights as "
        ".safetensors or a TorchScript module; null for Inception, and for points.",
    )
    inception_weights: LocalPath | None = Field(
        None, description="Local file of Inception's weights; null to download them, once."
    )

    @field_validator("features", mode="before")
    @classmethod
    def _refuse_other_files(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in NETWORKS and Path(value).suffix not in IN_FILES:
            raise ValueError(f"'{value}': {nearest(value, NETWORKS)}, or a file: {FEATURES_ADVICE}")
        return value

    reference: Reference | None = Field(
        None, description="Worst corner of the curve METRIC/hypervolume; null where it is not wanted."
    )


class Experiment(Config):
    """Data, model, training, evaluation and seed: a training run is a pure function of these."""

    data: DataConfig = Field(description="The data set that the model learns.")
    model: ModelConfig = Field(description="The particle model: a flow, with or without a generator.")
    training: TrainingConfig = Field(description="How long and how to train.")
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(), description="When and how to measure.", json_schema_extra=INFERENCE_ONLY
    )
    seed: Seed = Field(0, description="Seed of weights, batches, particles and splits.")

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Experiment:
        self.model.check_shape(self.data.shape)
        self._check_what_is_trained()
        if self.teacher is not None:
            self.check_teacher(self.teacher)
        if self.features is None and self.evaluation.features is not None:
            raise ValueError(
                f"evaluation.features is for images; data '{self.data.name}' gives points, which "
                f"are compared in data space: {', '.join(DEFAULTS['points'])}"
            )
        self._check_metrics()
        return self

    def _check_metrics(self) -> None:
        samples = self.evaluation.samples
        for name in self.evaluation.metrics or ():
            if name not in self.available_metrics:
                raise ValueError(
                    f"evaluation.metrics: unknown metric '{name}'; {nearest(name, self.available_metrics)}"
                )
            if samples is not None and samples < (least := METRICS[name].min_samples):
                raise ValueError(f"evaluation.samples is {samples}, but {name} needs at least {least}")

    def _check_what_is_trained(self) -> None:
        if self.training.generator_optimizer and not self.model.has_generator:
            raise ValueError(
                f"training.generator_optimizer: model '{self.model.name}' has no generator; leave it out"
            )
        if self.model.trains and self.training.steps == 0:
            raise ValueError(f"training.steps must be at least 1 to train model '{self.model.name}'")
        if not self.model.trains and self.training.steps > 0:
            raise ValueError(
                f"training.steps must be 0: model '{self.model.name}' without a generator trains nothing"
            )

    def check_teacher(self, teacher: Experiment) -> None:
        """Raise ValueError unless another experiment's model can be the teacher of this one."""
        if not teacher.model.scores_data:
            raise ValueError(
                "model.teacher: a teacher is an 'edm', which has scores of the data; "
                f"this is a '{teacher.model.name}'"
            )
        if teacher.data.shape != self.data.shape:
            raise ValueError(
                f"model.teacher: it was made for samples of shape {teacher.data.shape} (data "
                f"'{teacher.data.name}'), this experiment's have {self.data.shape} (data '{self.data.name}')"
            )

    @property
    def given_teacher(self) -> TeacherConfig | None:
        """Where the model's teacher is to be had; None for a model without one."""
        return self.model.given_teacher

    @cached_property
    def teacher(self) -> Experiment | None:
        """The experiment of the denoiser that a Score GAN follows, where it is given by one."""
        given = self.given_teacher
        if given is None or given.experiment is None:
            return None
        try:
            return Experiment.model_validate(given.experiment)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("model.teacher.experiment", *first["loc"])))
            raise ValueError(f"{where}: {reason(first)}") from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Experiment:
        """As pydantic's; the teacher is that of the copy's model."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("teacher", None)
        return copied

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the samples that training reads: its data's, and its teacher's where that has other data.

        Raises UserError where the data cannot be had.
        """
        found = {"data": fingerprint(self.data)}
        if self.teacher is not None and self.teacher.data != self.data:
            found["teacher"] = fingerprint(self.teacher.data)
        return found

    @property
    def training_key(self) -> str:
        """8 hexadecimal digits: equal for experiments whose trainings are the same, up to their lengths.

        A longer training is the same one, continued. Of a teacher given by its experiment everything counts,
        since its evaluations choose the weights that are followed.
        """
        trained = self.trained_part()
        del trained["training"]["steps"]
        return digest(trained, 12 - DATA_DIGITS)

    @property
    def training_digest(self) -> str:
        """12 hexadecimal digits: of the training's key, and of what the data hold.

        Raises UserError where the data cannot be had.
        """
        return self.training_key + digest(self.fingerprints, DATA_DIGITS)

    def judge(self, objective: Objective | None = None) -> str:
        """8 hexadecimal digits: of how trained weights are measured, and for which objective chosen.

        Where this and the training's digest are equal, evaluations at a step are, too: bit for bit on the
        CPU.
        objective: the default one if None.
        """
        chosen = (objective or self.default_objective).model_dump(mode="json")
        return digest({"measure": self.inference_part(), "objective": chosen}, 8)

    @property
    def run_name(self) -> str:
        """The name of its training run's folder: MODEL-DATA-TRAINING_DIGEST.

        Raises UserError where the data cannot be had.
        """
        return f"{folder_safe(self.model.name)}-{folder_safe(self.data_label)}-{self.training_digest}"

    @property
    def data_label(self) -> str:
        """What the data set is called beside others: its name, or that of a folder."""
        return str(getattr(self.data, "label", self.data.name))

    @property
    def feature_network(self) -> str | Path | None:
        """The network whose activations are compared: its name or file; None for points, which have none."""
        is_image = len(self.data.shape) == 3
        return (self.evaluation.features or "inception") if is_image else None

    @property
    def features(self) -> str | None:
        """What that network is called beside a number."""
        network = self.feature_network
        return network.name if isinstance(network, Path) else network

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that an evaluation measures, each with its mode, default first."""
        known = self.available_metrics
        names = self.evaluation.metrics or DEFAULTS["images" if self.features else "points"]
        return {name: known[name] for name in names if name in known}

    @property
    def available_metrics(self) -> dict[str, Mode]:
        """The metrics that an evaluation could measure, each with its mode."""
        return available(images=self.features is not None, modes_known=self.modes[0] is not None)

    @property
    def modes(self) -> tuple[Tensor | None, float]:
        """Means (M, D) and standard deviation of the Gaussians that points are from; None for others."""
        return getattr(self.data, "means", None), getattr(self.data, "std", 0.0)

    @property
    def evaluated_samples(self) -> int:
        """How many samples an evaluation generates. Raises UserError where only missing files could tell."""
        if self.evaluation.samples is not None:
            return self.evaluation.samples
        return self.samples_beside(self.data.validation_samples)

    def samples_beside(self, real: int) -> int:
        """How many samples are generated to be measured against so many real ones."""
        return self.evaluation.samples or (real if self.features else min(real, POINTS_EVALUATED))

    @property
    def evaluated_steps(self) -> list[int]:
        """The steps at which its training alone is evaluated."""
        every, steps = self.evaluation.every, self.training.steps
        return [*range(every, steps, every), steps]

    @property
    def default_objective(self) -> Objective:
        """What `best` means where no study says otherwise."""
        metric, mode = next(iter(self.metrics.items()))
        return Objective(metric=metric, mode=mode)

    def check_objective(self, objective: Objective) -> None:
        """Raise ValueError unless evaluations can tell what is asked for, in its own mode."""
        better = self.mode_of(objective)
        if objective.mode != better:
            raise ValueError(f"{objective.metric} is the better the {WORDS[better]}: set mode: {better}")

    def check_data(self) -> None:
        """Raise UserError where it shows at a look, without reading them, that the data are not there."""
        _ = self.data.validation_samples

    def check_samples(self, count: int) -> None:
        """Raise UserError unless so many training samples suffice."""
        for key, needed in (
            ("training.batch_size", self.training.batch_size),
            ("model.data_samples", self.model.kept_samples),
        ):
            if needed > count:
                raise UserError(
                    f"{key} is {needed}, but data '{self.data_label}' has {count} training samples: lower it"
                )

    def mode_of(self, named: Named) -> Mode:
        """The mode, min or max, of what an objective or constraint names.

        Raises ValueError where evaluations do not tell it.
        """
        metric = named.quantity.metric
        if metric in self.available_metrics and metric not in self.metrics:
            measured = ", ".join([*self.metrics, metric])
            raise ValueError(
                f"{metric} is not measured\nhelp: set experiment.evaluation.metrics: [{measured}]"
            )
        return named.mode_in(self.metrics, self.evaluation.nfe, self.evaluation.reference)


def digest(plain: Any, digits: int) -> str:
    """The first hexadecimal digits of the SHA-256 of plain data as canonical JSON."""
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:digits]


def folder_safe(label: str) -> str:
    """A label as a part of a folder's name, on any file system, in ASCII."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", label)[:LONGEST_LABEL]
