"""Particle models: a flow, with or without a generator. One file per combination (Table 1)."""

from typing import Annotated, cast

from gpm_tune.models.configuration import ParticleModelConfig, TaxonomyRow
from gpm_tune.models.discr_flow import DiscrFlowConfig
from gpm_tune.models.edm import EDMConfig
from gpm_tune.models.gan import GANConfig
from gpm_tune.models.kernel_flow import KernelFlowConfig
from gpm_tune.models.particle_model import (
    FreeParticleModel,
    GeneratorModel,
    ParticleModel,
    Samples,
    SamplingOptions,
    to_device,
)
from gpm_tune.models.score_gan import ScoreGANConfig
from gpm_tune.plugins import Extensible, members

ModelConfig = Annotated[
    EDMConfig | ScoreGANConfig | DiscrFlowConfig | GANConfig | KernelFlowConfig,
    Extensible("gpm_tune.models"),
]


def model_classes() -> tuple[type[ParticleModelConfig], ...]:
    """Of all models that an experiment may choose, those of plug-ins included."""
    return cast("tuple[type[ParticleModelConfig], ...]", members(ModelConfig))


__all__ = [
    "DiscrFlowConfig",
    "EDMConfig",
    "FreeParticleModel",
    "GANConfig",
    "GeneratorModel",
    "KernelFlowConfig",
    "ModelConfig",
    "ParticleModel",
    "ParticleModelConfig",
    "Samples",
    "SamplingOptions",
    "ScoreGANConfig",
    "TaxonomyRow",
    "model_classes",
    "to_device",
]
