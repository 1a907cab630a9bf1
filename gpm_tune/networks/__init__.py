"""Networks: one file each, built for a role from their configuration and the shape of the data."""

from typing import Annotated

from gpm_tune.networks.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from gpm_tune.networks.fastgan import FastGANDiscriminatorConfig, FastGANGeneratorConfig
from gpm_tune.networks.mlp import MLPConfig
from gpm_tune.networks.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from gpm_tune.networks.unet import UNetConfig
from gpm_tune.plugins import Extensible

DiscriminatorConfig = Annotated[
    MLPConfig | DCGANDiscriminatorConfig | ResNetDiscriminatorConfig | FastGANDiscriminatorConfig,
    Extensible("gpm_tune.networks", "build_discriminator"),
]
GeneratorConfig = Annotated[
    MLPConfig | DCGANGeneratorConfig | ResNetGeneratorConfig | FastGANGeneratorConfig,
    Extensible("gpm_tune.networks", "build_generator"),
]
DenoiserConfig = Annotated[MLPConfig | UNetConfig, Extensible("gpm_tune.networks", "build_denoiser")]

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
