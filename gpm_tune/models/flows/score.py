"""Flows of scores: of the data (EDM), and of data and generated distribution (Score GAN)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gpm_tune.config import Config
from gpm_tune.models.flow import Denoise, Flow, Particles, Terms, evaluating, per_sample
from gpm_tune.sampling.grids import NoiseRange
from gpm_tune.sampling.integration import randn_like

FARTHEST = 7  # standard deviations: no normal random number in single precision is farther out
HIGHEST = 1e12  # noise level in training; its inverse is the lowest: weights of the loss are finite between


class Denoiser(nn.Module):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise), the preconditioning of Karras et al. 2022."""

    def __init__(self, network: nn.Module, embedding: nn.Module, sigma_data: float = 0.5) -> None:
        """network: F(x, embedding of c_noise). sigma_data: standard deviation that the data have."""
        super().__init__()
        self.network = network
        self.embedding = embedding
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:  # (B, *shape), (B,) -> (B, *shape)
        s = per_sample(sigma, x)
        norm = (s.square() + self.sigma_data**2).rsqrt()
        c_skip, c_out = (self.sigma_data * norm).square(), s * self.sigma_data * norm
        output: Tensor = self.network(norm * x, self.embedding(sigma.log() / 4))
        return c_skip * x + c_out * output

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ) = 1/c_out², which makes the loss of F equally large at every noise level. (B,) -> (B,)."""
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


def denoising_loss(
    denoise: Denoise, x: Tensor, sigma: Tensor, weight: Tensor | float, rng: torch.Generator
) -> Tensor:
    """weight ‖D(x + σn; σ) - x‖², summed over dimensions, averaged over the batch (23).

    x: (B, *shape); sigma, weight: (B,).
    """
    noised = x + per_sample(sigma, x) * randn_like(x, rng)
    errors = (denoise(noised, sigma) - x).square().flatten(1).sum(1)
    return (weight * errors).mean()


def scaled_score(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """σ s(x; σ) = (D(x; σ) - x)/σ (24)."""
    return (denoise(x, sigma) - x) / per_sample(sigma, x)


class TrainingNoise(Config):
    """Noise levels at which a denoiser is trained: ln σ ~ N(mean, std²) (Karras et al. 2022)."""

    mean: float = Field(-1.2, description="Mean of ln σ (P_mean of EDM).")
    std: float = Field(1.2, gt=0, description="Standard deviation of ln σ (P_std of EDM).")

    @model_validator(mode="after")
    def _refuse_levels_that_cannot_be_squared(self) -> TrainingNoise:
        if abs(self.mean) + FARTHEST * self.std > math.log(HIGHEST):
            raise ValueError(
                f"mean ({self.mean:g}) and std ({self.std:g}) draw noise levels beyond {1 / HIGHEST:g} to "
                f"{HIGHEST:g}: choose |mean| + {FARTHEST} std below {math.log(HIGHEST):.1f}"
            )
        return self

    def draw(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """A noise level for each sample: (B,)."""
        return (self.mean + self.std * torch.randn(len(x), device=x.device, generator=rng)).exp()


class DataScore(Flow):
    """h = σ log(p_data * k_σ), by a denoiser that is trained on data alone: the flow of EDM and NCSN."""

    network: Denoiser
    role = "denoiser"

    def __init__(self, denoiser: Denoiser, noise: TrainingNoise) -> None:
        super().__init__()
        self.network = denoiser
        self.noise = noise

    def fit(self, real: Tensor, particles: Callable[[], Particles], rng: torch.Generator) -> Terms:
        """Denoise data (23); particles have no part in it."""
        del particles
        sigma = self.noise.draw(real, rng)
        weight = self.network.weight(sigma)
        return {"denoising": denoising_loss(self.network, real, sigma, weight, rng)}

    def direction(self, x: Tensor, t: Tensor | None, rng: torch.Generator) -> Tensor:
        """σ ∇log(p_data * k_σ)(x), at the noise level t = σ."""
        del rng
        assert t is not None, "the score of the data is asked for at a noise level"
        with evaluating(self.network):
            return scaled_score(self.network, x, t)


class ScoreDifference(Flow):
    """The flow of a Score GAN: α σ s_data - β σ s_gen at noised particles (19)(27)."""

    network: Denoiser
    role = "generated_denoiser"
    is_random = True

    def __init__(
        self,
        generated: Denoiser,
        teacher: Denoise | None,
        noise: NoiseRange,
        *,
        alpha: float,
        beta: float,
        stochastic: float,
        dropout: bool = False,
    ) -> None:
        """generated: D_gen. teacher: D_data, which is not needed to sample. stochastic: λ of (21).

        dropout: whether D_gen's dropout acts in directions; the teacher's mode is its owner's to choose.
        """
        super().__init__()
        self.network = generated
        self.teacher = teacher
        self.noise = noise
        self.alpha, self.beta, self.stochastic = alpha, beta, stochastic
        self.dropout = dropout

    def fit(self, real: Tensor, particles: Callable[[], Particles], rng: torch.Generator) -> Terms:
        """Denoise generated samples, unweighted (line 3 of Algorithm 1)."""
        del real
        x, _ = particles()
        return {"denoising": denoising_loss(self.network, x, self._draw(x, rng), 1.0, rng)}

    def direction(self, x: Tensor, t: Tensor | None, rng: torch.Generator) -> Tensor:
        """Δ at x + σn (line 5): an estimate of ∇h for h smoothed over noise levels, drawn from (28)."""
        del t
        sigma = self._draw(x, rng)
        noised = x + per_sample(sigma, x) * randn_like(x, rng)
        data, generated = self.scaled_scores(noised, sigma)
        if self.stochastic:
            # σ s_gen is minus the expected noise, so that noise of unit variance matches it (21)(22).
            generated = torch.lerp(generated, randn_like(x, rng), self.stochastic)
        return self.alpha * data - self.beta * generated

    def scores(self, noised: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """α σ s_data and -β σ s_gen at particles of these noise levels (19)(27)."""
        data, generated = self.scaled_scores(noised, sigma)
        return {"data_score": self.alpha * data, "generated_score": -self.beta * generated}

    def scaled_scores(self, noised: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """σ s_data and σ s_gen at noised particles (B, *shape), without a graph; sigma: (B,)."""
        assert self.teacher is not None, "a Score GAN without its teacher can only generate"
        with torch.no_grad() if self.dropout else evaluating(self.network):
            return scaled_score(self.teacher, noised, sigma), scaled_score(self.network, noised, sigma)

    def _draw(self, x: Tensor, rng: torch.Generator) -> Tensor:
        return self.noise.at(torch.rand(len(x), device=x.device, generator=rng))
