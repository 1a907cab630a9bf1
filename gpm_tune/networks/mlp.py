"""Multi-layer perceptron for points (and, flattened, for small images)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import Config
from gpm_tune.networks.initialization import Initialization, Normal, initialize


class MLPConfig(Config):
    """Linear in->width, then `depth` times (leaky ReLU, linear), the last one to the output."""

    name: Literal["mlp"]
    width: int = Field(512, ge=1, description="Units of each hidden layer.")
    depth: int = Field(4, ge=1, description="Activations, each followed by a linear layer.")
    init: Initialization = Field(Normal(), description="How the weights start.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Every shape is welcome: the input is flattened."""

    def build(self, shape: tuple[int, ...], embedding: int) -> MLPDiscriminator:
        """A discriminator of samples of this shape, with a time embedding of the given size."""
        return MLPDiscriminator(self, math.prod(shape), embedding)


class MLPDiscriminator(nn.Module):
    """f(x, embedding): the embedding is concatenated to the flat input."""

    def __init__(self, config: MLPConfig, inputs: int, embedding: int) -> None:
        super().__init__()
        widths = [inputs + embedding, *[config.width] * config.depth, 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])
        initialize(self, config.init)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # (B, *shape), (B, E) -> (B,)
        output: Tensor = self.layers(torch.cat([x.flatten(1), embedding], dim=1))
        return output.squeeze(1)
