"""The experiment: everything that one training run needs. The single source of truth for its keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpm_tune.config import Config
from gpm_tune.data import DataConfig
from gpm_tune.metrics import ImageMetrics, PointMetrics
from gpm_tune.models import ModelConfig


class OptimizerConfig(Config):
    """Adam."""

    lr: float = Field(2e-4, gt=0, description="Learning rate.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.5, 0.999), description="Decay rates of the moment estimates."
    )


class TrainingConfig(Config):
    """How long and how the model is trained."""

    steps: int = Field(ge=1, description="Optimiser iterations.")
    batch_size: int = Field(128, ge=1, description="Real samples per step.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Of the flow's network.")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay per step of an average of the weights, which is then evaluated; "
        "null for none, as in the paper.",
    )


class EvaluationConfig(Config):
    """When and how the model is measured, always on the validation set."""

    every: int = Field(1000, ge=1, description="Training steps between evaluations.")
    nfe: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="Further NFE at which every metric is reported, by stopping the path early; "
        "values beyond the model's sampling steps are left out.",
    )
    samples: int | None = Field(
        None,
        ge=2,
        description="Generated samples; null for as many as the validation set has, 10,000 for points.",
    )
    features: Literal["small", "inception"] | None = Field(
        None,
        description="Network whose activations FID compares: the standard Inception-v3, or the "
        "small bundled one, which was trained on MNIST; null for Inception, and for points.",
    )
    inception_weights: Path | None = Field(
        None, description="Local file of Inception's weights; null to download them."
    )


class Objective(Config):
    """A metric and the direction in which it improves."""

    metric: str = Field(description="Name of a metric that the evaluation reports.")
    mode: Literal["min", "max"] = Field("min", description="Which direction is better.")

    def better(self, value: float, than: float) -> bool:
        """Whether a value is strictly better than another."""
        return value < than if self.mode == "min" else value > than

    @property
    def worst(self) -> float:
        """What every finite value is better than."""
        return math.inf if self.mode == "min" else -math.inf


class Experiment(Config):
    """Data, model, training, evaluation and seed: a training run is a pure function of these."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="When and how to measure.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of weights, batches, particles and splits.")

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Experiment:
        self.model.check_shape(self.data.shape)
        if self.features is None and self.evaluation.features is not None:
            raise ValueError(
                f"evaluation.features is for images; data '{self.data.name}' gives points, which "
                f"are compared in data space: {', '.join(PointMetrics.directions)}"
            )
        return self

    @property
    def features(self) -> Literal["small", "inception"] | None:
        """The network whose activations FID compares; None for points, which have no FID."""
        is_image = len(self.data.shape) == 3
        return (self.evaluation.features or "inception") if is_image else None

    @property
    def metrics(self) -> dict[str, Literal["min", "max"]]:
        """The metrics that an evaluation reports, each with its better direction, default first."""
        return ImageMetrics.directions if self.features else PointMetrics.directions

    @property
    def default_objective(self) -> Objective:
        """What `best` means where no study says otherwise."""
        metric, mode = next(iter(self.metrics.items()))
        return Objective(metric=metric, mode=mode)
