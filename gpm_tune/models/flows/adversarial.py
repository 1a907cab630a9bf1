"""Adversarial losses (15)(16) and the gradient penalty, shared by everything with a discriminator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu, softplus

from gpm_tune.config import MAX_MAGNITUDE, Config
from gpm_tune.models.flow import per_sample

Discriminator = Callable[[Tensor], Tensor]  # (B, *shape) -> (B,)
LossName = Literal["ipm", "vanilla", "hinge"]


@dataclass(frozen=True)
class AdversarialLoss:
    """Per-sample terms: the discriminator minimises fake + real, particles minimise c(f) (16)."""

    fake: Callable[[Tensor], Tensor]
    real: Callable[[Tensor], Tensor]
    particle: Callable[[Tensor], Tensor]


LOSSES: dict[LossName, AdversarialLoss] = {
    "ipm": AdversarialLoss(lambda f: f, lambda f: -f, lambda f: -f),
    "vanilla": AdversarialLoss(softplus, lambda f: softplus(-f), lambda f: softplus(-f)),
    "hinge": AdversarialLoss(lambda f: relu(1 + f), lambda f: relu(1 - f), lambda f: -f),
}


class GradientPenalty(Config):
    """weight · (‖∇f(x̃)‖₂ - center)² at points x̃ between real and generated samples."""

    paper: ClassVar[str] = "section 3.2, R in (15); Table 4"

    weight: float = Field(0.04, ge=0, le=MAX_MAGNITUDE, description="Factor of the penalty in the loss.")
    center: float = Field(0.0, ge=0, le=MAX_MAGNITUDE, description="The gradient norm that costs nothing.")
    points: Literal["interpolation", "real", "fake"] = Field(
        "interpolation",
        description="The points x̃: real samples, generated ones, or uniform on the segments between them.",
    )


def input_gradient(f: Discriminator, x: Tensor, create_graph: bool = False) -> Tensor:
    """∇_x f(x) for each sample: (B, *shape)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=create_graph)
    return gradient


def discriminator_loss(
    f: Discriminator,
    real: Tensor,
    fake: Tensor,
    loss: AdversarialLoss,
    penalty: GradientPenalty | None,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """The terms of (15) to be minimised, in the sign of the table of losses.

    real, fake: (B, *shape), paired where the penalty interpolates. Returns scalars: `fake`, `real`,
    and `penalty` where there is one; the loss is their sum.
    """
    terms = {"fake": loss.fake(f(fake)).mean(), "real": loss.real(f(real)).mean()}
    if penalty is not None:
        terms["penalty"] = gradient_penalty(f, real, fake, penalty, rng)
    return terms


def gradient_penalty(
    f: Discriminator, real: Tensor, fake: Tensor, penalty: GradientPenalty, rng: torch.Generator
) -> Tensor:
    """The penalty's batch mean, differentiable in the parameters of f."""
    if penalty.points == "interpolation":
        alpha = torch.rand(len(real), dtype=real.dtype, device=real.device, generator=rng)
        at = torch.lerp(fake, real, per_sample(alpha, real))
    else:
        at = real if penalty.points == "real" else fake
    norms = torch.linalg.vector_norm(input_gradient(f, at, create_graph=True).flatten(1), dim=1)
    mean: Tensor = (norms - penalty.center).square().mean()
    return penalty.weight * mean
