"""The flow: where particles get their direction from. Half of the abstraction that all models share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Terms = dict[str, Tensor]  # name -> scalar; a loss is the sum of its terms
Denoise = Callable[[Tensor, Tensor], Tensor]  # D: (B, *shape), σ (B,) -> (B, *shape)


class Particles(NamedTuple):
    """Generated samples (B, *shape), and each one's time (B,) where they have one."""

    x: Tensor
    t: Tensor | None


class FlowInputs(NamedTuple):
    """What a flow may take as it is, instead of learning it."""

    samples: Tensor | None = None  # of the data, (N, *shape)
    teacher: Denoise | None = None  # a denoiser of the data


NO_INPUTS = FlowInputs()


class Flow(nn.Module, ABC):
    """∇h_ρ of (1), by a network that is fitted to data and particles, or in closed form.

    Subclasses hold what computes a direction in `network`: NFE counts the rows that go through it.
    """

    network: nn.Module
    role: ClassVar[str]  # what the network is called
    is_random: ClassVar[bool] = False  # whether directions are estimates that draw from rng
    interacts: ClassVar[bool] = False  # whether a particle's direction depends on the others beside it

    def fit(self, real: Tensor, particles: Callable[[], Particles], rng: torch.Generator) -> Terms:
        """The terms of the loss of the flow's network on a real batch (B, *shape); none without a network.

        particles: generates as many particles with the current model, without gradients; a flow that
        does not look at particles does not pay for them.
        """
        del real, particles, rng
        return {}

    @abstractmethod
    def direction(self, x: Tensor, t: Tensor | None, rng: torch.Generator) -> Tensor:
        """∇h_ρ at particles x (B, *shape), without a graph; t: (B,), None where there is no time.

        Where h is itself an expectation, this is an unbiased estimate that draws from rng.
        """

    def particle_loss(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        """-h (B,) at particles x (B, *shape), where it can be told; t: as `direction` has it."""
        del x, t
        return None

    def scores(self, noised: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """The weighted scores whose sum is the direction at noised particles (B, *shape), by name (19)(27).

        sigma: (B,), the particles' noise levels. None where the configuration's `scores_generated` is False.
        """
        del noised, sigma
        return {}


@contextmanager
def no_parameter_grad(network: nn.Module) -> Iterator[None]:
    """Directions need gradients of inputs only; those of parameters would be thrown away.

    Under autocast the parameters stay as they are: it casts them once, instead of at every step of a
    simulation, only where they require gradients. What its owner has frozen stays so after the block.
    """
    is_cast = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    learning = [] if is_cast else [p for p in network.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, for the block; after it every module has the mode it had."""
    learning = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in learning:
            module.training = True


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Values (B,) shaped so that they multiply samples x (B, *shape)."""
    return values.view(-1, *[1] * (x.dim() - 1))
