"""DCGAN discriminator and generator (Radford et al. 2016, adapted in appendix D.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

from gpm_tune.config import MAX_WIDTH, Config
from gpm_tune.networks.initialization import Initialization, Normal, initialize
from gpm_tune.networks.layers import Conv, Modulation, check_images

SIDES = (16, 32, 64)
# Side of the images -> stride-2 convolutions between the full side, or 32 x 32 at most, and 4 x 4.
RESAMPLINGS = {16: 2, 32: 3, 64: 3}


class DCGANDiscriminatorConfig(Config):
    """A first convolution to `width`, stride-2 convolutions that double it down to 4 x 4, one to a scalar."""

    paper: ClassVar[str] = "appendix D.2"

    name: Literal["dcgan"]
    width: int = Field(64, ge=1, le=MAX_WIDTH, description="Channels after the first convolution.")
    norm: Literal["batch", "none"] = Field(
        "none", description="Normalisation after the stride-2 convolutions."
    )
    first_bias: bool = Field(False, description="Whether the first convolution has a bias.")
    init: Initialization = Field(Normal(), description="How the weights start.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are square images of a side that the network has."""
        check_images("dcgan", shape, SIDES)

    def build_discriminator(self, shape: tuple[int, ...], embedding: int) -> nn.Module:
        """f(x, embedding) of images of this shape; embedding: its size, 0 for none."""
        return Discriminator(self, shape, embedding)


class Discriminator(nn.Module):
    """f(x, embedding): with a time, every convolution is modulated by it, the last one included."""

    def __init__(self, config: DCGANDiscriminatorConfig, shape: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        channels, side, width = shape[0], shape[1], config.width
        self.modulation = Modulation(embedding)
        time = self.modulation.features
        kernel, stride = (4, 2) if side == 64 else (3, 1)
        first = Conv(channels, width, kernel, stride=stride, padding=1, bias=config.first_bias, time=time)
        layers = [first]
        for _ in range(RESAMPLINGS[side]):
            norm = config.norm == "batch"
            layers.append(Conv(width, 2 * width, 4, stride=2, padding=1, norm=norm, time=time))
            width *= 2
        layers.append(Conv(width, 1, 4, bias=False, time=time))
        self.layers = nn.ModuleList(layers)
        initialize(self, config.init)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:  # (B, C, H, W), (B, E) -> (B,)
        time = self.modulation(embedding)
        *hidden, last = self.layers
        for layer in hidden:
            x = leaky_relu(layer(x, time), 0.2)
        output: Tensor = last(x, time)
        return output.flatten()


class DCGANGeneratorConfig(Config):
    """A transposed convolution to 4 x 4, stride-2 ones that halve the channels to `width`, one to images."""

    paper: ClassVar[str] = "appendix D.2"

    name: Literal["dcgan"]
    width: int = Field(64, ge=1, le=MAX_WIDTH, description="Channels before the last convolution.")
    norm: Literal["batch", "none"] = Field(
        "batch", description="Normalisation after every convolution but the last."
    )
    init: Initialization = Field(Normal(), description="How the weights start.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are square images of a side that the network has."""
        check_images("dcgan", shape, SIDES)

    def build_generator(self, latent: int, shape: tuple[int, ...]) -> nn.Module:
        """g(z) with values in (-1, 1)."""
        return Generator(self, latent, shape)


class Generator(nn.Module):
    """g(z): (B, latent) -> (B, C, H, W), through tanh."""

    def __init__(self, config: DCGANGeneratorConfig, latent: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, side = shape[0], shape[1]
        norm, up = config.norm == "batch", RESAMPLINGS[side]
        widths = [config.width * 2**i for i in range(up, -1, -1)]
        layers = [Conv(latent, widths[0], 4, norm=norm, transposed=True)]
        for before, after in pairwise(widths):
            layers.append(Conv(before, after, 4, stride=2, padding=1, norm=norm, transposed=True))
        kernel, stride = (4, 2) if side == 64 else (3, 1)
        layers.append(
            Conv(config.width, channels, kernel, stride=stride, padding=1, bias=False, transposed=True)
        )
        self.layers = nn.ModuleList(layers)
        initialize(self, config.init)

    def forward(self, z: Tensor) -> Tensor:
        *hidden, last = self.layers
        x = z[:, :, None, None]
        for layer in hidden:
            x = relu(layer(x))
        output: Tensor = last(x)
        return output.tanh()
