"""Multi-layer perceptron for points (and, flattened, for small images), in every role."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import MAX_WIDTH, Config
from gpm_tune.networks.initialization import Initialization, Normal, initialize
from gpm_tune.networks.layers import ACTIVATIONS, Dropout

Shape = tuple[int, ...]


class MLPConfig(Config):
    """Linear in->width, then `depth` times (activation, linear), the last one to the output."""

    paper: ClassVar[str] = "appendix D.2"

    name: Literal["mlp"]
    width: int = Field(512, ge=1, le=MAX_WIDTH, description="Units of each hidden layer.")
    depth: int = Field(4, ge=1, le=100, description="Activations, each followed by a linear layer.")
    activation: Literal["leaky_relu", "relu", "silu"] = Field(
        "leaky_relu", description="Activation function; leaky ReLU has the slope 0.2."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability of a hidden feature to be dropped.")
    init: Initialization = Field(Normal(), description="How the weights start.")

    def check_shape(self, shape: Shape) -> None:
        """Every shape is welcome: inputs are flattened, outputs are shaped."""

    def build_discriminator(self, shape: Shape, embedding: int) -> nn.Module:
        """f(x, embedding) of samples of this shape; embedding: its size, 0 for none."""
        return Discriminator(self, shape, embedding)

    def build_denoiser(self, shape: Shape, embedding: int) -> nn.Module:
        """F(x, embedding) with values of the samples' shape."""
        return ShapedMLP(self, shape, math.prod(shape) + embedding)

    def build_generator(self, latent: int, shape: Shape) -> nn.Module:
        """g(z) with values of the samples' shape, unbounded."""
        return ShapedMLP(self, shape, latent)


class MLP(nn.Module):
    """The layers; what is given besides the flat input is concatenated to it."""

    def __init__(self, config: MLPConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([inputs, *[config.width] * config.depth, outputs]):
            activation = ACTIVATIONS[config.activation]()
            layers += [nn.Linear(before, after), nn.Sequential(activation, Dropout(config.dropout))]
        self.layers = nn.Sequential(*layers[:-1])
        initialize(self, config.init)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        output: Tensor = self.layers(flat if embedding is None else torch.cat([flat, embedding], dim=1))
        return output


class Discriminator(MLP):
    """Scalar outputs: (B, *shape), (B, E) -> (B,)."""

    def __init__(self, config: MLPConfig, shape: Shape, embedding: int) -> None:
        super().__init__(config, math.prod(shape) + embedding, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return super().forward(x, embedding).squeeze(1)


class ShapedMLP(MLP):
    """Outputs of the samples' shape: (B, inputs), (B, E) -> (B, *shape)."""

    def __init__(self, config: MLPConfig, shape: Shape, inputs: int) -> None:
        super().__init__(config, inputs, math.prod(shape))
        self.shape = shape

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        output: Tensor = super().forward(x, embedding).unflatten(1, self.shape)
        return output
