"""U-Net denoiser for images: DDPM++ (Song et al. 2021) as EDM uses it (Karras et al. 2022)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, scaled_dot_product_attention, silu

from gpm_tune.config import MAX_WIDTH, Config
from gpm_tune.networks.layers import Dropout, TimeMLP, upsample

Resampling = Literal["up", "down"]


class UNetConfig(Config):
    """Residual blocks on every level of resolution, each decoder block with an encoder output beside it."""

    paper: ClassVar[str] = "appendices B.1.1, D.2"

    name: Literal["unet"]
    channels: int = Field(
        128, ge=4, le=MAX_WIDTH, multiple_of=4, description="Base width c: channels of the first convolution."
    )
    channel_mult: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2, 2),
        min_length=1,
        description="Channels per level in units of c; every level has half the side.",
    )
    blocks: int = Field(
        2, ge=1, le=100, description="Blocks per level of the encoder; the decoder has one more."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability of a feature to be dropped.")
    attention_resolutions: tuple[PositiveInt, ...] = Field(
        (16,), description="Sides at which the encoder's blocks and the decoder's last block attend."
    )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are square images that can be halved once per further level."""
        factor = 2 ** (len(self.channel_mult) - 1)
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % factor or shape[1] // factor < 4:
            raise ValueError(
                f"network 'unet' with {len(self.channel_mult)} levels takes square images whose side is a "
                f"multiple of {factor} and at least {4 * factor}, the data has the shape {shape}; "
                "for points choose 'mlp', for smaller images a shorter channel_mult"
            )

    def build_denoiser(self, shape: tuple[int, ...], embedding: int) -> nn.Module:
        """F(x, embedding) with values of the samples' shape; embedding: its size."""
        return UNet(self, shape, embedding)


class UNet(nn.Module):
    """F(x, embedding): (B, C, H, W), (B, E) -> (B, C, H, W)."""

    def __init__(self, config: UNetConfig, shape: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        channels, side, base = shape[0], shape[1], config.channels
        self.time = TimeMLP(embedding, 4 * base)

        def block(
            inputs: int, outputs: int, resample: Resampling | None = None, attend: bool = False
        ) -> Block:
            return Block(inputs, outputs, 4 * base, config.dropout, resample, attend)

        self.first = nn.Conv2d(channels, base, 3, padding=1)
        widths = [multiple * base for multiple in config.channel_mult]
        attends = [side >> level in config.attention_resolutions for level in range(len(widths))]
        encoder, width, skips = [], base, [base]
        for level, outputs in enumerate(widths):
            if level > 0:
                encoder.append(block(width, width, "down"))
                skips.append(width)
            for _ in range(config.blocks):
                encoder.append(block(width, outputs, attend=attends[level]))
                width = outputs
                skips.append(width)
        self.encoder = nn.ModuleList(encoder)

        self.bottom = nn.ModuleList([block(width, width, attend=True), block(width, width)])
        decoder = []
        for level, outputs in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                decoder.append(block(width, width, "up"))
            for index in range(config.blocks + 1):
                attend = attends[level] and index == config.blocks
                decoder.append(block(width + skips.pop(), outputs, attend=attend))
                width = outputs
        self.decoder = nn.ModuleList(decoder)
        self.norm = _norm(width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        time = self.time(embedding)
        x = self.first(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, time)
            skips.append(x)
        for block in self.bottom:
            x = block(x, time)
        for block in self.decoder:
            x = block(x if block.resample == "up" else torch.cat([x, skips.pop()], dim=1), time)
        output: Tensor = self.last(silu(self.norm(x)))
        return output


class Block(nn.Module):
    """A residual block that is told the time; attention may follow.

    Where it changes the side, it does so before its 3 x 3 convolutions, in both directions.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        time: int,
        dropout: float,
        resample: Resampling | None,
        attend: bool,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.first_norm = _norm(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(time, outputs)
        self.second_norm = _norm(outputs)
        self.dropout = Dropout(dropout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        changes = inputs != outputs or resample is not None
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if changes else nn.Identity()
        self.attention = Attention(outputs) if attend else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # (B, C, H, W), (B, F) -> (B, C', H', W')
        y = silu(self.first_norm(x))
        if self.resample == "up":
            y = upsample(y)
            x = upsample(self.shortcut(x))  # commutes with the 1 x 1 convolution, which costs a quarter here
        elif self.resample == "down":
            y = avg_pool2d(y, 2)
            x = self.shortcut(avg_pool2d(x, 2))
        else:
            x = self.shortcut(x)
        y = self.first(y)
        y = y + self.affine(time)[:, :, None, None]
        y = self.second(self.dropout(silu(self.second_norm(y))))
        output: Tensor = self.attention((x + y) * math.sqrt(0.5))
        return output


class Attention(nn.Module):
    """One-head self-attention over the pixels, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        pixels = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1)  # (B, 1, H·W, 3C)
        y = scaled_dot_product_attention(*pixels.chunk(3, dim=3))
        output: Tensor = (x + self.out(y.squeeze(1).mT.unflatten(2, x.shape[2:]))) * math.sqrt(0.5)
        return output


class Norm(nn.GroupNorm):
    """A group norm in the precision of its weights, as autocast has it on GPUs.

    On the CPU autocast leaves it in bfloat16, where it takes three times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def _norm(channels: int) -> Norm:
    """min(32, channels / 4) groups, or the next smaller number that divides the channels."""
    most = min(32, channels // 4)
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return Norm(groups, channels, eps=1e-6)
