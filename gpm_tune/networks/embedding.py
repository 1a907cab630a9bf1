"""How a network is told the time, or the noise level: embeddings of a scalar."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import MAX_MAGNITUDE, MAX_WIDTH, Config


class FourierConfig(Config):
    """Random Fourier features: cos and sin at frequencies ~ N(0, scale²) that stay as they were drawn."""

    name: Literal["fourier"] = "fourier"
    size: int = Field(
        128, ge=2, le=MAX_WIDTH, multiple_of=2, description="Length of the embedding: half cos, half sin."
    )
    scale: float = Field(
        16.0, gt=0, le=MAX_MAGNITUDE, description="Standard deviation of the fixed frequencies."
    )

    def build(self) -> Embedding:
        """The embedding with freshly drawn frequencies."""
        return Embedding(2 * math.pi * self.scale * torch.randn(self.size // 2))


class PositionalConfig(Config):
    """cos and sin at angular frequencies from 1 down to 1/10000, evenly spaced in their logarithm."""

    name: Literal["positional"] = "positional"
    size: int = Field(
        256, ge=4, le=MAX_WIDTH, multiple_of=2, description="Length of the embedding: half cos, half sin."
    )

    def build(self) -> Embedding:
        """The embedding."""
        return Embedding(torch.logspace(0, -4, self.size // 2))


EmbeddingConfig = Annotated[FourierConfig | PositionalConfig, Field(discriminator="name")]


class Embedding(nn.Module):
    """cos and sin of a scalar at fixed angular frequencies."""

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:  # (size / 2,)
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def forward(self, t: Tensor) -> Tensor:  # (B,) -> (B, size)
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)
