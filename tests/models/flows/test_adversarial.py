"""Adversarial losses and the gradient penalty, against their closed forms."""

import pytest
import torch
from torch import Tensor

from gpm_tune.models.flows.adversarial import (
    LOSSES,
    GradientPenalty,
    LossName,
    discriminator_loss,
    gradient_penalty,
    input_gradient,
)

RNG = torch.Generator().manual_seed(0)


def linear(x: Tensor) -> Tensor:
    """f with ‖∇f‖ = 5 everywhere."""
    return x @ torch.tensor([3.0, 4.0])


@pytest.mark.parametrize(
    ("name", "fake", "real", "particle"),
    [("ipm", 2.0, -2.0, -2.0), ("vanilla", 2.126928, 0.126928, 0.126928), ("hinge", 3.0, 0.0, -2.0)],
)
def test_terms_at_two(name: LossName, fake: float, real: float, particle: float) -> None:
    loss, two = LOSSES[name], torch.tensor(2.0)
    assert loss.fake(two).item() == pytest.approx(fake, abs=1e-5)
    assert loss.real(two).item() == pytest.approx(real, abs=1e-5)
    assert loss.particle(two).item() == pytest.approx(particle, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_particles_move_to_where_the_discriminator_is_higher(name: LossName) -> None:
    velocity = -input_gradient(lambda x: LOSSES[name].particle(linear(x)), torch.randn(10, 2))
    assert (velocity @ torch.tensor([3.0, 4.0]) > 0).all()


def test_the_input_gradient_is_per_sample() -> None:
    x = torch.randn(6, 2)
    torch.testing.assert_close(input_gradient(lambda y: y.square().sum(1), x), 2 * x)


@pytest.mark.parametrize("points", ["interpolation", "real", "fake"])
def test_penalty_of_a_linear_function(points: str) -> None:
    penalty = GradientPenalty.model_validate({"weight": 0.5, "center": 1.0, "points": points})
    value = gradient_penalty(linear, torch.randn(8, 2), torch.randn(8, 2), penalty, RNG)
    assert value.item() == pytest.approx(0.5 * (5 - 1) ** 2)


def test_interpolates_lie_on_the_segments_and_spread_over_them() -> None:
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().sum(1)

    real, fake = torch.ones(5000, 1), torch.zeros(5000, 1)
    gradient_penalty(f, real, fake, GradientPenalty(), RNG)
    at = seen[0]
    assert at.min() >= 0
    assert at.max() <= 1
    assert at.mean().item() == pytest.approx(0.5, abs=0.02)
    assert at.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_the_loss_trains_the_discriminator_through_the_penalty() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    penalty = GradientPenalty(weight=1.0, center=0.0)
    terms = discriminator_loss(
        lambda x: x @ weight, torch.zeros(4, 2), torch.zeros(4, 2), LOSSES["ipm"], penalty, RNG
    )
    assert set(terms) == {"fake", "real", "penalty"}
    torch.stack(list(terms.values())).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())
