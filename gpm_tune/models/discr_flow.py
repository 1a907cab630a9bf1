"""Discriminator Flow: free particles that follow a time-dependent discriminator (20), no generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import Config
from gpm_tune.models.adversarial import (
    LOSSES,
    GradientPenalty,
    LossName,
    discriminator_loss,
    input_gradient,
)
from gpm_tune.models.evaluations import count_evaluations
from gpm_tune.networks import DCGANDiscriminatorConfig, DiscriminatorConfig
from gpm_tune.networks.embedding import FourierConfig, FourierEmbedding
from gpm_tune.sampling.euler import euler_path, euler_until


class GaussianPrior(Config):
    """π = N(mean, std² I), where particles start."""

    mean: float = Field(0.0, description="Mean of each coordinate.")
    std: float = Field(1.0, gt=0, description="Standard deviation of each coordinate.")


class DiscrFlowConfig(Config):
    """Discriminator Flow (section 4.2, Algorithm 3); the defaults are the paper's for MNIST."""

    name: Literal["discr_flow"]
    loss: LossName = Field("ipm", description="Adversarial loss of discriminator and particles.")
    sampling_steps: int = Field(64, ge=1, description="N: Euler steps from the prior to the data.")
    eta: float = Field(2.0, gt=0, description="η: gradient strength, the length of the flow.")
    gradient_penalty: GradientPenalty | None = Field(
        GradientPenalty(), description="Regularisation R(f) of the discriminator; null for none."
    )
    prior: GaussianPrior = Field(GaussianPrior(), description="Where particles start.")
    time_embedding: FourierConfig = Field(
        FourierConfig(), description="How the discriminator is told the time."
    )
    discriminator: DiscriminatorConfig = Field(
        DCGANDiscriminatorConfig(name="dcgan"), description="The network f(x, t)."
    )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a network cannot take samples of this shape."""
        self.discriminator.check_shape(shape)

    def build(self, shape: tuple[int, ...]) -> DiscrFlow:
        """The untrained model for samples of this shape; uses torch's global random state."""
        return DiscrFlow(self, shape)


class Samples(NamedTuple):
    """Generated samples and what they cost."""

    nfe: int
    particles: Tensor  # (n, *shape)


class DiscrFlow(nn.Module):
    """Particles with dx = η ∇(-c∘f(·, t))(x) dt, and the loss that fits f to them."""

    def __init__(self, config: DiscrFlowConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.embedding = FourierEmbedding(config.time_embedding)
        self.discriminator = config.discriminator.build(shape, config.time_embedding.size)

    def loss(self, real: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """The terms of one training iteration's loss on a real batch (B, *shape) (Algorithm 3).

        Each particle is simulated with the current discriminator up to its own random time, at
        which the discriminator then tells it from a real sample.
        """
        steps = self.config.sampling_steps
        stops = torch.randint(steps, (len(real),), device=real.device, generator=rng)
        with self._frozen():
            fake = euler_until(self.velocity, self._prior(len(real), real, rng), stops, steps)
        embedding = self.embedding(stops / steps)

        def f(x: Tensor) -> Tensor:
            output: Tensor = self.discriminator(x, embedding)
            return output

        config = self.config
        return discriminator_loss(f, real, fake, LOSSES[config.loss], config.gradient_penalty, rng)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """η ∇_x(-c(f(x, t))) (20). x: (B, *shape), t: (B,) in [0, 1)."""
        embedding = self.embedding(t)
        particle_loss = LOSSES[self.config.loss].particle
        gradient = input_gradient(lambda y: particle_loss(self.discriminator(y, embedding)), x)
        return -self.config.eta * gradient

    def sample(self, n: int, rng: torch.Generator, after: Sequence[int] = ()) -> list[Samples]:
        """n samples after the whole path, preceded by the same particles stopped early.

        after: grid indices in [1, N] at which the path is also read (Figure 7a); N is always in.
        Returns one entry per index, ascending.
        """
        stops = {*after, self.config.sampling_steps}
        start = self._prior(n, next(self.discriminator.parameters()), rng)
        with count_evaluations(self.discriminator) as counter, self._frozen():
            path = euler_path(self.velocity, start, self.config.sampling_steps)
            return [Samples(counter.nfe(n), x) for i, x in enumerate(path, start=1) if i in stops]

    def _prior(self, n: int, like: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(n, *self.shape, device=like.device, dtype=like.dtype, generator=rng)
        return self.config.prior.mean + self.config.prior.std * noise

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Directions need gradients of inputs only; those of parameters would be thrown away."""
        self.discriminator.requires_grad_(False)
        try:
            yield
        finally:
            self.discriminator.requires_grad_(True)
