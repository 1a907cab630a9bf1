"""Networks: one file each, built from their configuration and the shape of the data."""

from typing import Annotated

from pydantic import Field

from gpm_tune.networks.dcgan import DCGANDiscriminatorConfig
from gpm_tune.networks.mlp import MLPConfig

DiscriminatorConfig = Annotated[MLPConfig | DCGANDiscriminatorConfig, Field(discriminator="name")]

__all__ = ["DCGANDiscriminatorConfig", "DiscriminatorConfig", "MLPConfig"]
