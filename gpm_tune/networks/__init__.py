"""Networks: one file each, built for a role from their configuration and the shape of the data."""

from typing import Annotated

from pydantic import Field

from gpm_tune.networks.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from gpm_tune.networks.fastgan import FastGANDiscriminatorConfig, FastGANGeneratorConfig
from gpm_tune.networks.mlp import MLPConfig
from gpm_tune.networks.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from gpm_tune.networks.unet import UNetConfig

DiscriminatorConfig = Annotated[
    MLPConfig | DCGANDiscriminatorConfig | ResNetDiscriminatorConfig | FastGANDiscriminatorConfig,
    Field(discriminator="name"),
]
GeneratorConfig = Annotated[
    MLPConfig | DCGANGeneratorConfig | ResNetGeneratorConfig | FastGANGeneratorConfig,
    Field(discriminator="name"),
]
DenoiserConfig = Annotated[MLPConfig | UNetConfig, Field(discriminator="name")]

__all__ = [
    "DCGANDiscriminatorConfig",
    "DCGANGeneratorConfig",
    "DenoiserConfig",
    "DiscriminatorConfig",
    "FastGANDiscriminatorConfig",
    "FastGANGeneratorConfig",
    "GeneratorConfig",
    "MLPConfig",
    "ResNetDiscriminatorConfig",
    "ResNetGeneratorConfig",
    "UNetConfig",
]
