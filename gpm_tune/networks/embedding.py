"""How a network learns about time: a Fourier embedding, and the modulation of convolutions by it."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import Config


class FourierConfig(Config):
    """Random Fourier features of time."""

    size: int = Field(128, ge=2, multiple_of=2, description="Length of the embedding: half cos, half sin.")
    scale: float = Field(16.0, gt=0, description="Standard deviation of the fixed frequencies.")


class FourierEmbedding(nn.Module):
    """cos and sin of 2π·frequency·t, with frequencies ~ N(0, scale²) fixed at initialisation."""

    frequencies: Tensor

    def __init__(self, config: FourierConfig) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(config.size // 2) * config.scale)

    def forward(self, t: Tensor) -> Tensor:  # (B,) -> (B, size)
        angles = 2 * math.pi * t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeMLP(nn.Sequential):
    """The one MLP per modulated network: embedding e -> 2e, SiLU, 2e -> 2e, SiLU (appendix D.2)."""

    def __init__(self, size: int) -> None:
        super().__init__(nn.Linear(size, 2 * size), nn.SiLU(), nn.Linear(2 * size, 2 * size), nn.SiLU())


class ModulatedConv(nn.Module):
    """A convolution whose output y becomes (1 + scale)·y + shift, both linear in the time features."""

    def __init__(self, convolution: nn.Conv2d, time_features: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.affine = nn.Linear(time_features, 2 * convolution.out_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # (B, C, H, W), (B, F)
        scale, shift = self.affine(time)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, 1 + scale, self.convolution(x))
