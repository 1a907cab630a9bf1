"""How the weights of a network start."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import MAX_MAGNITUDE, Config

Convolution = nn.Conv2d | nn.ConvTranspose2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm


class Normal(Config):
    """N(0, gain²) weights, zero biases, norm scales N(1, gain²)."""

    name: Literal["normal"] = "normal"
    gain: float = Field(0.02, gt=0, le=MAX_MAGNITUDE, description="Standard deviation of the weights.")

    def fill(self, weight: Tensor) -> None:
        nn.init.normal_(weight, 0.0, self.gain)


class Orthogonal(Config):
    """Orthogonal weights times a gain, zero biases, norm scales N(1, gain²)."""

    name: Literal["orthogonal"] = "orthogonal"
    gain: float = Field(1.41, gt=0, le=MAX_MAGNITUDE, description="Factor on the orthogonal matrix.")

    def fill(self, weight: Tensor) -> None:
        nn.init.orthogonal_(weight, self.gain)


class Default(Config):
    """PyTorch's own initialisation."""

    name: Literal["default"] = "default"


Initialization = Annotated[Normal | Orthogonal | Default, Field(discriminator="name")]


def initialize(network: nn.Module, initialization: Normal | Orthogonal | Default) -> None:
    """Initialise every linear, convolutional and norm layer of the network in place (appendix D.2)."""
    if isinstance(initialization, Default):
        return
    for module in network.modules():
        if isinstance(module, nn.Linear | Convolution):
            initialization.fill(module.weight)
        elif isinstance(module, Norm):
            nn.init.normal_(module.weight, 1.0, initialization.gain)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
