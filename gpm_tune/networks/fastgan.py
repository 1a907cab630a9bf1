"""FastGAN discriminator, without its decoder branch, and generator (Liu et al. 2021; appendix D.2)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, glu, leaky_relu, silu

from gpm_tune.config import MAX_WIDTH, Config
from gpm_tune.networks.initialization import Initialization, Normal, initialize
from gpm_tune.networks.layers import Conv, Modulation, check_images, upsample

# Side of the images -> channels of the first convolution and after each halving, in units of the width.
DISCRIMINATOR_WIDTHS = {32: (2, 4, 8, 16), 64: (1, 2, 4, 8, 16)}
# Side of the images -> channels of the 4 x 4 features and after each doubling, in units of the width.
GENERATOR_WIDTHS = {32: (16, 8, 4, 2), 64: (16, 8, 4, 2, 2)}


class FastGANDiscriminatorConfig(Config):
    """Two-branch blocks down to 4 x 4; at 64 x 64 the 32 x 32 features gate the last ones."""

    paper: ClassVar[str] = "appendix D.2"

    name: Literal["fastgan"]
    width: int = Field(
        32, ge=1, le=MAX_WIDTH, description="Channels at 64 x 64; each halving of the side doubles them."
    )
    norm: Literal["batch", "none"] = Field(
        "batch", description="Normalisation after every convolution but the first and the last."
    )
    first_bias: bool = Field(False, description="Whether the first convolution has a bias.")
    init: Initialization = Field(Normal(), description="How the weights start.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are square images of a side that the network has."""
        check_images("fastgan", shape, tuple(DISCRIMINATOR_WIDTHS))

    def build_discriminator(self, shape: tuple[int, ...], embedding: int) -> nn.Module:
        """f(x, embedding) of images of this shape; embedding: its size, 0 for none."""
        return Discriminator(self, shape, embedding)


class Discriminator(nn.Module):
    """f(x, embedding): with a time, every convolution is modulated by it, the last one included."""

    def __init__(self, config: FastGANDiscriminatorConfig, shape: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        self.modulation = Modulation(embedding)
        time, norm = self.modulation.features, config.norm == "batch"
        width, *widths = (multiple * config.width for multiple in DISCRIMINATOR_WIDTHS[shape[1]])
        self.first = Conv(shape[0], width, 3, padding=1, bias=config.first_bias, time=time)
        blocks = []
        for outputs in widths:
            blocks.append(DownBlock(width, outputs, norm=norm, time=time))
            width = outputs
        self.blocks = nn.ModuleList(blocks)
        self.gate = Gate(widths[0], width, time) if shape[1] == 64 else None
        self.mix = Conv(width, width, 1, norm=norm, time=time)
        self.last = Conv(width, 1, 4, bias=False, time=time)
        initialize(self, config.init)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:  # (B, C, H, W), (B, E) -> (B,)
        time = self.modulation(embedding)
        first, *blocks = self.blocks
        x = large = first(leaky_relu(self.first(x, time), 0.2), time)
        for block in blocks:
            x = block(x, time)
        if self.gate is not None:
            x = x * self.gate(large, time)
        output: Tensor = self.last(leaky_relu(self.mix(x, time), 0.2), time)
        return output.flatten()


class DownBlock(nn.Module):
    """The mean of two convolutions on the image and of one on its average pool: half the side."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool, time: int) -> None:
        super().__init__()
        self.first = Conv(inputs, outputs, 4, stride=2, padding=1, norm=norm, time=time)
        self.second = Conv(outputs, outputs, 3, padding=1, norm=norm, time=time)
        self.pooled = Conv(inputs, outputs, 1, norm=norm, time=time)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:  # (B, C, H, W) -> (B, C', H/2, W/2)
        y = leaky_relu(self.first(x, time), 0.2)
        y = leaky_relu(self.second(y, time), 0.2)
        return (y + leaky_relu(self.pooled(avg_pool2d(x, 2), time), 0.2)) / 2


class FastGANGeneratorConfig(Config):
    """Gated convolutions from 4 x 4 up; at 64 x 64 the 4 x 4 features gate the last ones."""

    paper: ClassVar[str] = "appendix D.2"

    name: Literal["fastgan"]
    width: int = Field(32, ge=1, le=MAX_WIDTH, description="Half the channels before the last convolution.")
    norm: Literal["batch", "none"] = Field(
        "batch", description="Normalisation after every convolution but the last."
    )
    init: Initialization = Field(Normal(), description="How the weights start.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are square images of a side that the network has."""
        check_images("fastgan", shape, tuple(GENERATOR_WIDTHS))

    def build_generator(self, latent: int, shape: tuple[int, ...]) -> nn.Module:
        """g(z) with values in (-1, 1)."""
        return Generator(self, latent, shape)


class Generator(nn.Module):
    """g(z): (B, latent) -> (B, C, H, W), through tanh."""

    def __init__(self, config: FastGANGeneratorConfig, latent: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        norm = config.norm == "batch"
        width, *widths = (multiple * config.width for multiple in GENERATOR_WIDTHS[shape[1]])
        self.first = Conv(latent, 2 * width, 4, norm=norm, transposed=True)
        self.gate = Gate(width, widths[-1]) if shape[1] == 64 else None
        blocks = []
        for index, outputs in enumerate(widths):
            blocks.append(UpBlock(width, outputs, double=index % 2 == 0, norm=norm))
            width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = Conv(width, shape[0], 3, padding=1, bias=False)
        initialize(self, config.init)

    def forward(self, z: Tensor) -> Tensor:
        small = glu(self.first(z[:, :, None, None]), dim=1)
        x = self.blocks(small)
        if self.gate is not None:
            x = x * self.gate(small)
        output: Tensor = self.last(x)
        return output.tanh()


class UpBlock(nn.Module):
    """Twice the side by repeating pixels, then one gated convolution, or two in a double block."""

    def __init__(self, inputs: int, outputs: int, *, double: bool, norm: bool) -> None:
        super().__init__()
        self.first = Conv(inputs, 2 * outputs, 3, padding=1, norm=norm)
        self.second = Conv(outputs, 2 * outputs, 3, padding=1, norm=norm) if double else None

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', 2H, 2W)
        x = glu(self.first(upsample(x)), dim=1)
        return x if self.second is None else glu(self.second(x), dim=1)


class Gate(nn.Module):
    """Factors in (0, 1), one per channel, from the features of another side (skip-layer excitation)."""

    def __init__(self, inputs: int, outputs: int, time: int = 0) -> None:
        super().__init__()
        self.first = Conv(inputs, outputs, 4, bias=False, time=time)
        self.second = Conv(outputs, outputs, 1, bias=False, time=time)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:  # (B, C, H, W) -> (B, C', 1, 1)
        factors: Tensor = self.second(silu(self.first(adaptive_avg_pool2d(x, 4), time)), time)
        return factors.sigmoid()
