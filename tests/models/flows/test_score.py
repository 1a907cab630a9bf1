"""Scores: preconditioning, the optimal denoiser, and the direction of a Score GAN."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from gpm_tune.config import MAX_MAGNITUDE, MIN_MAGNITUDE
from gpm_tune.models.flow import Particles
from gpm_tune.models.flows.score import (
    DataScore,
    Denoiser,
    ScoreDifference,
    TrainingNoise,
    denoising_loss,
    scaled_score,
)
from gpm_tune.networks import MLPConfig
from gpm_tune.networks.embedding import FourierConfig
from gpm_tune.sampling.grids import NoiseRange

NOISE = NoiseRange(sigma_min=0.1, sigma_max=10.0, rho=3.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_denoiser(width: int = 64) -> Denoiser:
    torch.manual_seed(0)
    config = MLPConfig.model_validate(
        {"name": "mlp", "width": width, "depth": 2, "activation": "silu", "init": {"name": "default"}}
    )
    embedding = FourierConfig(size=16, scale=1.0)
    return Denoiser(config.build_denoiser((2,), 16), embedding.build())


def gaussian_denoiser(mean: Tensor, std: float):
    """E[data | data + σn] for data ~ N(mean, std² I)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        gain = (std**2 / (std**2 + sigma.square()))[:, None]
        return mean + gain * (x - mean)

    return denoise


class Constant(nn.Module):
    """F = a constant, so that the preconditioning stands alone."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        self.seen = x, embedding
        return torch.full_like(x, self.value)


@given(
    st.floats(-30, 30),
    st.floats(0.01, 5),
    st.sampled_from([MIN_MAGNITUDE, 0.5, MAX_MAGNITUDE]),
    st.integers(0, 9),
)
def test_accepted_training_noise_gives_finite_losses(
    mean: float, std: float, sigma_data: float, seed: int
) -> None:
    """Levels that cannot be squared, or divided by, are refused."""
    assume(abs(mean) + 7 * std < math.log(1e12))
    sigma = TrainingNoise(mean=mean, std=std).draw(torch.zeros(1000, 1), rng(seed))
    weight = Denoiser(Constant(1.0), nn.Identity(), sigma_data).weight(sigma)
    for values in (sigma, weight, sigma.square(), weight * sigma_data**2):
        assert values.isfinite().all()
        assert (values > 0).all()


@pytest.mark.parametrize("keys", [{"mean": 1000.0}, {"mean": -1000.0}, {"std": 30.0}])
def test_training_noise_that_overflows_is_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"draw noise levels beyond 1e-12 to 1e\+12"):
        TrainingNoise.model_validate(keys)


def test_preconditioning_by_hand() -> None:
    network = Constant(3.0)
    denoiser = Denoiser(network, nn.Identity())
    x, sigma = torch.tensor([[2.0, -1.0]]), torch.tensor([1.5])
    root = math.sqrt(1.5**2 + 0.25)
    expected = 0.25 / root**2 * x + 1.5 * 0.5 / root * 3.0
    torch.testing.assert_close(denoiser(x, sigma), expected)
    torch.testing.assert_close(network.seen[0], x / root)
    torch.testing.assert_close(network.seen[1], torch.tensor([math.log(1.5) / 4]))
    torch.testing.assert_close(denoiser.weight(sigma), torch.tensor([root**2 / (1.5 * 0.5) ** 2]))


def test_the_weighted_loss_of_an_untrained_network_is_the_same_at_every_noise_level() -> None:
    """What λ(σ) is for: with F = 0 and data of variance σ_data², the loss is 1 per dimension."""
    denoiser = Denoiser(Constant(0.0), nn.Identity())
    x = 0.5 * torch.randn(200_000, 2, generator=rng())
    for level in (0.01, 0.5, 20.0):
        sigma = torch.full((len(x),), level)
        loss = denoising_loss(denoiser, x, sigma, denoiser.weight(sigma), rng(1))
        assert loss.item() == pytest.approx(2.0, rel=0.02)


def test_the_loss_of_the_optimal_denoiser_is_the_posterior_variance() -> None:
    """Unweighted, summed over dimensions, averaged over the batch (23)."""
    mean, std, level = torch.tensor([1.0, -2.0]), 0.7, 1.3
    x = mean + std * torch.randn(200_000, 2, generator=rng())
    sigma = torch.full((len(x),), level)
    loss = denoising_loss(gaussian_denoiser(mean, std), x, sigma, 1.0, rng(1))
    assert loss.item() == pytest.approx(2 * std**2 * level**2 / (std**2 + level**2), rel=0.02)


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    """(24), against autograd."""
    mean, std = torch.tensor([1.0, -2.0]), 0.7
    x, sigma = torch.randn(10, 2, generator=rng()).requires_grad_(), torch.linspace(0.1, 3, 10)
    variance = (std**2 + sigma.square())[:, None]
    log_density = (-(x - mean).square() / (2 * variance)).sum()
    (gradient,) = torch.autograd.grad(log_density, x)
    score = scaled_score(gaussian_denoiser(mean, std), x, sigma) / sigma[:, None]
    torch.testing.assert_close(score, gradient)


def test_training_reaches_the_optimal_denoiser_of_a_gaussian() -> None:
    """To a mean error of 6 % of the data's standard deviation, at noise levels that matter."""
    mean, std = torch.tensor([0.5, -0.3]), 0.4
    flow = DataScore(small_denoiser(), TrainingNoise(mean=-1.0, std=1.0))
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    generator = rng()
    for step in range(800):
        real = mean + std * torch.randn(256, 2, generator=generator)
        loss = flow.fit(real, lambda: pytest.fail("EDM needs no particles"), generator)["denoising"]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 800)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    exact = gaussian_denoiser(mean, std)
    for level in (0.1, 0.4, 1.0, 3.0):
        sigma = torch.full((2000,), level)
        noised = mean + math.sqrt(std**2 + level**2) * torch.randn(2000, 2, generator=generator)
        error = (flow.network(noised, sigma) - exact(noised, sigma)).square().mean().sqrt()
        assert error < 0.06 * std, f"at σ = {level}"


def difference(generated: nn.Module, teacher: object, **weights: float) -> ScoreDifference:
    keys = {"alpha": 1.0, "beta": 1.0, "stochastic": 0.0, **weights}
    return ScoreDifference(generated, teacher, NOISE, **keys)  # type: ignore[arg-type]


def test_two_equal_denoisers_move_nothing() -> None:
    denoiser = small_denoiser()
    x = torch.randn(50, 2)
    assert not difference(denoiser, denoiser).direction(x, None, rng()).any()
    assert difference(denoiser, denoiser, alpha=2.0).direction(x, None, rng()).any()


def test_dropout_does_not_disturb_directions() -> None:
    denoiser = small_denoiser()
    denoiser.network.layers.insert(1, nn.Dropout(0.5))
    assert denoiser.training
    assert not difference(denoiser, denoiser).direction(torch.randn(50, 2), None, rng()).any()
    assert denoiser.training


class Analytic(nn.Module):
    """An analytic denoiser in place of a network."""

    def __init__(self, mean: Tensor, std: float) -> None:
        super().__init__()
        self.denoise = gaussian_denoiser(mean, std)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoise(x, sigma)


def test_the_direction_is_the_weighted_difference_of_scores() -> None:
    """α σ s_data - β σ s_gen at x + σn (27), in expectation over σ and n, by Monte Carlo."""
    data, generated = (torch.tensor([2.0, 0.0]), 0.5), (torch.zeros(2), 1.0)
    flow = difference(Analytic(*generated), gaussian_denoiser(*data), alpha=1.5, beta=0.5)
    x = torch.tensor([[1.0, 0.5]]).expand(200_000, 2)
    found = flow.direction(x, None, rng()).mean(0)
    sigma = NOISE.at(torch.linspace(0, 1, 20_001))[:, None]
    scores = [-(x[0] - mean) / (std**2 + sigma**2) * sigma for mean, std in (data, generated)]
    expected = (1.5 * scores[0] - 0.5 * scores[1]).mean(0)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.01)


def test_the_stochastic_share_replaces_the_generated_score_by_unit_noise() -> None:
    flow = difference(Analytic(torch.zeros(2), 1.0), gaussian_denoiser(torch.zeros(2), 1.0), stochastic=1.0)
    flow.alpha = 0.0
    direction = flow.direction(torch.zeros(50_000, 2), None, rng())
    assert direction.mean().item() == pytest.approx(0.0, abs=0.02)
    assert direction.var().item() == pytest.approx(1.0, rel=0.02)


def test_the_generated_denoiser_is_fitted_to_particles_and_not_to_data() -> None:
    flow = difference(small_denoiser(), None)
    seen = Particles(torch.full((8, 2), 5.0), None)
    terms = flow.fit(torch.full((8, 2), torch.nan), lambda: seen, rng())
    assert terms["denoising"].isfinite()
