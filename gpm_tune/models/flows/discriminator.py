"""The flow of a discriminator: of a GAN, and, told the time, of a Discriminator Flow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpm_tune.models.flow import Flow, Particles, Terms, no_parameter_grad
from gpm_tune.models.flows.adversarial import (
    LOSSES,
    Discriminator,
    GradientPenalty,
    LossName,
    discriminator_loss,
    input_gradient,
)


class DiscriminatorFlow(Flow):
    """h = -c∘f(·, t), with f fitted to tell particles from data (15)(16)."""

    role = "discriminator"

    def __init__(
        self,
        network: nn.Module,
        embedding: nn.Module | None,
        loss: LossName,
        penalty: GradientPenalty | None,
    ) -> None:
        """network: f(x, embedding of t); embedding: None for a network that is not told the time."""
        super().__init__()
        self.network = network
        self.embedding = embedding
        self.losses = LOSSES[loss]
        self.penalty = penalty

    def fit(self, real: Tensor, particles: Callable[[], Particles], rng: torch.Generator) -> Terms:
        """Tell particles from data, both at the particles' times."""
        fake, t = particles()
        return discriminator_loss(self._at(t), real, fake, self.losses, self.penalty, rng)

    def direction(self, x: Tensor, t: Tensor | None, rng: torch.Generator) -> Tensor:
        """∇(-c∘f(·, t))(x)."""
        del rng
        with no_parameter_grad(self.network):
            return -input_gradient(lambda y: self.particle_loss(y, t), x)

    def particle_loss(self, x: Tensor, t: Tensor | None) -> Tensor:
        """c(f(x, t)) at particles x (B, *shape), which they descend (16): (B,)."""
        return self.losses.particle(self._at(t)(x))

    def _at(self, t: Tensor | None) -> Discriminator:
        """f(·, t), with values in the precision of the particles, whatever the network computes with."""
        embedding = None if t is None or self.embedding is None else self.embedding(t)
        return lambda x: self.network(x, embedding).to(x.dtype)
