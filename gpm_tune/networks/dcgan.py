"""DCGAN discriminator with time modulation (Radford et al. 2016, adapted in appendix D.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from gpm_tune.config import Config
from gpm_tune.networks.embedding import ModulatedConv, TimeMLP
from gpm_tune.networks.initialization import Initialization, Orthogonal, initialize

# Side of the images -> number of stride-2 convolutions that bring them down to 4 x 4.
DOWNSAMPLINGS = {16: 2, 32: 3, 64: 4}


class DCGANDiscriminatorConfig(Config):
    """A first convolution to `width`, stride-2 convolutions that double it down to 4 x 4, one to a scalar."""

    name: Literal["dcgan"]
    width: int = Field(64, ge=1, description="Channels after the first convolution.")
    init: Initialization = Field(Orthogonal(), description="How the weights start.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are square images of a side that the network has."""
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in DOWNSAMPLINGS:
            sides = ", ".join(f"{side}x{side}" for side in DOWNSAMPLINGS)
            raise ValueError(
                f"network 'dcgan' takes images of {sides}, the data has the shape {shape}; "
                "for points choose 'mlp'"
            )

    def build(self, shape: tuple[int, ...], embedding: int) -> DCGANDiscriminator:
        """A discriminator of images of this shape, with a time embedding of the given size."""
        return DCGANDiscriminator(self, shape, embedding)


class DCGANDiscriminator(nn.Module):
    """f(x, embedding): every convolution, the last one included, is modulated by the time embedding."""

    def __init__(self, config: DCGANDiscriminatorConfig, shape: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        channels, side, width = shape[0], shape[1], config.width
        downsamplings = DOWNSAMPLINGS[side]
        if side == 64:
            convolutions = [nn.Conv2d(channels, width, 4, stride=2, padding=1)]
            downsamplings -= 1
        else:
            convolutions = [nn.Conv2d(channels, width, 3, padding=1)]
        for _ in range(downsamplings):
            convolutions.append(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1))
            width *= 2
        convolutions.append(nn.Conv2d(width, 1, 4, bias=False))
        self.time = TimeMLP(embedding)
        self.convolutions = nn.ModuleList(ModulatedConv(c, 2 * embedding) for c in convolutions)
        initialize(self, config.init)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # (B, C, H, W), (B, E) -> (B,)
        time = self.time(embedding)
        *hidden, last = self.convolutions
        for convolution in hidden:
            x = leaky_relu(convolution(x, time), 0.2)
        output: Tensor = last(x, time)
        return output.flatten()
