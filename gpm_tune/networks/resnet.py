"""Residual discriminator and generator (Kang et al. 2022) with self-attention (Zhang et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import max_pool2d, relu, scaled_dot_product_attention

from gpm_tune.config import MAX_WIDTH, Config
from gpm_tune.networks.initialization import Initialization, Normal, initialize
from gpm_tune.networks.layers import ACTIVATIONS, Conv, Modulation, check_images, upsample

# Side of the images -> channels after each block, in units of the width, and the number of blocks that halve.
DISCRIMINATOR_WIDTHS = {32: (2, 2, 2, 2), 64: (1, 2, 4, 8, 16)}
DOWNSAMPLINGS = {32: 2, 64: 4}
# Side of the images -> channels of the 4 x 4 features and after each block, which all double the side.
GENERATOR_WIDTHS = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1)}


class ResNetDiscriminatorConfig(Config):
    """Residual blocks that halve the image, activation, sum over space, linear to a scalar."""

    paper: ClassVar[str] = "appendix D.2"

    name: Literal["resnet"]
    width: int = Field(
        64, ge=1, le=MAX_WIDTH, description="Channels after the first block; twice as many for 32 x 32."
    )
    norm: Literal["batch", "none"] = Field("none", description="Normalisation in every block but the first.")
    first_bias: bool = Field(False, description="Whether the first convolution has a bias.")
    activation: Literal["relu", "leaky_relu"] = Field(
        "relu", description="Activation function; leaky ReLU has the slope 0.2."
    )
    activated_shortcut: bool = Field(
        False,
        description="Whether the shortcuts of blocks without norm take the activated input, as in the "
        "paper's run on CelebA, or the input itself, as in the literature.",
    )
    attention_after: tuple[NonNegativeInt, ...] = Field(
        (), description="Blocks, counted from 0, that self-attention follows."
    )
    init: Initialization = Field(Normal(), description="How the weights start.")

    @model_validator(mode="after")
    def _refuse_activated_shortcuts_with_a_norm(self) -> ResNetDiscriminatorConfig:
        if self.activated_shortcut and self.norm != "none":
            raise ValueError(f"activated_shortcut is for blocks without norm; norm is '{self.norm}'")
        return self

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network takes such images and has the blocks that attention follows."""
        check_images("resnet", shape, tuple(DISCRIMINATOR_WIDTHS))
        _check_attention(self.attention_after, self.width, DISCRIMINATOR_WIDTHS[shape[1]])

    def build_discriminator(self, shape: tuple[int, ...], embedding: int) -> nn.Module:
        """f(x, embedding) of images of this shape; embedding: its size, 0 for none."""
        return Discriminator(self, shape, embedding)


class Discriminator(nn.Module):
    """f(x, embedding): with a time, it modulates every convolution, in shortcuts and attention too."""

    def __init__(self, config: ResNetDiscriminatorConfig, shape: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        self.modulation = Modulation(embedding)
        inputs, side, time = shape[0], shape[1], self.modulation.features
        self.activation = ACTIVATIONS[config.activation]()
        layers: list[nn.Module] = []
        for index, multiple in enumerate(DISCRIMINATOR_WIDTHS[side]):
            outputs, down = multiple * config.width, index < DOWNSAMPLINGS[side]
            layers.append(
                DownBlock(config, inputs, outputs, down=down, time=time)
                if index
                else FirstBlock(config, inputs, outputs, time=time)
            )
            if index in config.attention_after:
                layers.append(SelfAttention(outputs, time))
            inputs = outputs
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(inputs, 1)
        initialize(self, config.init)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:  # (B, C, H, W), (B, E) -> (B,)
        time = self.modulation(embedding)
        for layer in self.layers:
            x = layer(x, time)
        output: Tensor = self.last(self.activation(x).sum(dim=(2, 3)))
        return output.squeeze(1)


class FirstBlock(nn.Module):
    """The discriminator's first block: it starts with a convolution, as its input is an image."""

    def __init__(self, config: ResNetDiscriminatorConfig, inputs: int, outputs: int, *, time: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]()
        self.first = Conv(inputs, outputs, 3, padding=1, bias=config.first_bias, time=time)
        self.second = Conv(outputs, outputs, 3, padding=1, time=time)
        self.pool = nn.AvgPool2d(2)
        self.shortcut = Conv(inputs, outputs, 1, time=time)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:  # (B, C, H, W) -> (B, C', H/2, W/2)
        y = self.second(self.activation(self.first(x, time)), time)
        output: Tensor = self.pool(y) + self.shortcut(self.pool(x), time)
        return output


class DownBlock(nn.Module):
    """A later block of the discriminator: norm and activation precede convolutions; it may halve the side."""

    def __init__(
        self, config: ResNetDiscriminatorConfig, inputs: int, outputs: int, *, down: bool, time: int
    ) -> None:
        super().__init__()
        norm, changes = config.norm == "batch", down or inputs != outputs
        self.activated_shortcut = config.activated_shortcut
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = _norm(inputs, norm)
        self.first = Conv(inputs, outputs, 3, padding=1, norm=norm, time=time)
        self.second = Conv(outputs, outputs, 3, padding=1, time=time)
        self.pool = nn.AvgPool2d(2) if down else nn.Identity()
        self.shortcut_norm = _norm(inputs, norm and changes)
        self.shortcut = Conv(inputs, outputs, 1, time=time) if changes else None

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:  # (B, C, H, W) -> (B, C', H', W')
        activated = self.activation(self.norm(x))
        y = self.activation(self.first(activated, time))
        y = self.pool(self.second(y, time))
        if self.activated_shortcut:
            x = activated
        if self.shortcut is not None:
            # A 1 x 1 convolution commutes with average pooling, and costs a quarter after it.
            x = self.shortcut(self.pool(self.shortcut_norm(x)), time)
        output: Tensor = x + y
        return output


class ResNetGeneratorConfig(Config):
    """A linear layer to 4 x 4 features, residual blocks that double the side, a convolution to the image."""

    paper: ClassVar[str] = "appendix D.2"

    name: Literal["resnet"]
    width: int = Field(
        64,
        ge=1,
        le=MAX_WIDTH,
        description="Channels after the last block; four times as many for 32 x 32.",
    )
    norm: Literal["batch", "none"] = Field("batch", description="Normalisation before every activation.")
    attention_after: tuple[NonNegativeInt, ...] = Field(
        (), description="Blocks, counted from 0, that self-attention follows."
    )
    init: Initialization = Field(Normal(), description="How the weights start.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network makes such images and has the blocks that attention follows."""
        check_images("resnet", shape, tuple(GENERATOR_WIDTHS))
        _check_attention(self.attention_after, self.width, GENERATOR_WIDTHS[shape[1]][1:])

    def build_generator(self, latent: int, shape: tuple[int, ...]) -> nn.Module:
        """g(z) with values in (-1, 1)."""
        return Generator(self, latent, shape)


class Generator(nn.Module):
    """g(z): (B, latent) -> (B, C, H, W), through tanh."""

    def __init__(self, config: ResNetGeneratorConfig, latent: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        norm = config.norm == "batch"
        first, *widths = (multiple * config.width for multiple in GENERATOR_WIDTHS[shape[1]])
        self.first = nn.Linear(latent, 16 * first)
        inputs, layers = first, list[nn.Module]()
        for index, outputs in enumerate(widths):
            layers.append(UpBlock(inputs, outputs, norm=norm))
            if index in config.attention_after:
                layers.append(SelfAttention(outputs))
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.norm = _norm(inputs, norm)
        self.last = Conv(inputs, shape[0], 3, padding=1)
        initialize(self, config.init)

    def forward(self, z: Tensor) -> Tensor:
        x = self.layers(self.first(z).unflatten(1, (-1, 4, 4)))
        output: Tensor = self.last(relu(self.norm(x)))
        return output.tanh()


class UpBlock(nn.Module):
    """A block of the generator: norm and activation precede convolutions; it doubles the side."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = _norm(inputs, norm)
        self.first = Conv(inputs, outputs, 3, padding=1, norm=norm)
        self.second = Conv(outputs, outputs, 3, padding=1)
        self.shortcut = Conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', 2H, 2W)
        y = relu(self.first(upsample(relu(self.norm(x)))))
        # A 1 x 1 convolution commutes with repeating pixels, and costs a quarter before it.
        output: Tensor = self.second(y) + upsample(self.shortcut(x))
        return output


class SelfAttention(nn.Module):
    """x + γ·conv1(softmax(θᵀφ) g): every pixel attends to the 2 x 2 maxima; γ starts at 0."""

    def __init__(self, channels: int, time: int = 0) -> None:
        super().__init__()
        self.theta = Conv(channels, channels // 8, 1, bias=False, time=time)
        self.phi = Conv(channels, channels // 8, 1, bias=False, time=time)
        self.g = Conv(channels, channels // 2, 1, bias=False, time=time)
        self.out = Conv(channels // 2, channels, 1, bias=False, time=time)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        query = _pixels(self.theta(x, time))
        key = _pixels(max_pool2d(self.phi(x, time), 2))
        value = _pixels(max_pool2d(self.g(x, time), 2))
        with sdpa_kernel(SDPBackend.MATH):  # gradient penalties differentiate twice, fused kernels only once
            y = scaled_dot_product_attention(query, key, value, scale=1.0)
        y = y.squeeze(1).mT.unflatten(2, x.shape[2:])
        output: Tensor = x + self.gamma * self.out(y, time)
        return output


def _pixels(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, 1, H·W, C)
    return x.flatten(2).mT.unsqueeze(1)


def _norm(channels: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


def _check_attention(after: tuple[int, ...], width: int, widths: tuple[int, ...]) -> None:
    for index in after:
        if index >= len(widths):
            raise ValueError(
                f"network 'resnet' has the blocks 0 to {len(widths) - 1} for such images, "
                f"attention_after asks for attention after block {index}"
            )
        if widths[index] * width % 8:
            raise ValueError(
                f"self-attention divides the channels by 8, but block {index} of network 'resnet' gives "
                f"{widths[index] * width}; choose a width that is a multiple of 8"
            )
