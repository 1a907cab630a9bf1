"""Models as another package would add them: flow matching, a discriminator by Heun, a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gpm_tune.config import INFERENCE_ONLY
from gpm_tune.models import FreeParticleModel, ParticleModelConfig, TaxonomyRow
from gpm_tune.models.flow import NO_INPUTS, Flow, FlowInputs, Particles, Terms, evaluating, per_sample
from gpm_tune.models.flows.discriminator import DiscriminatorFlow
from gpm_tune.models.particle_model import GaussianPrior, UniformTime
from gpm_tune.networks import DenoiserConfig, DiscriminatorConfig, MLPConfig
from gpm_tune.networks.embedding import FourierConfig
from gpm_tune.sampling.integration import randn_like
from gpm_tune.sampling.solvers import SolverConfig
from gpm_tune.sampling.solvers.euler import EulerConfig
from gpm_tune.sampling.solvers.heun import HeunConfig

EMBEDDING = FourierConfig(size=8)
SMALL = MLPConfig.model_validate({"name": "mlp", "width": 32, "depth": 2, "init": {"name": "default"}})


class Straight(Flow):
    """The velocity of straight lines from noise to data, fitted by regression."""

    role = "velocity"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.embedding = EMBEDDING.build()

    def fit(self, real: Tensor, particles: Callable[[], Particles], rng: torch.Generator) -> Terms:
        """‖v(x_t, t) - (x_1 - x_0)‖²; particles have no part in it."""
        del particles
        noise, t = randn_like(real, rng), torch.rand(len(real), device=real.device, generator=rng)
        between = noise + per_sample(t, real) * (real - noise)
        return {"velocity": (self.network(between, self.embedding(t)) - (real - noise)).square().mean()}

    def direction(self, x: Tensor, t: Tensor | None, rng: torch.Generator) -> Tensor:
        """v(x, t)."""
        del rng
        assert t is not None
        with evaluating(self.network):
            velocity: Tensor = self.network(x, self.embedding(t))
            return velocity


class StraightConfig(ParticleModelConfig):
    """Flow matching: it knows every time, so that fewer evaluations take a coarser grid."""

    title: ClassVar[str] = "Flow matching"
    taxonomy: ClassVar = (TaxonomyRow("score", False, ("sampling_steps",), "nowhere"),)

    name: Literal["straight"]
    sampling_steps: int = Field(8, ge=1, description="N of the solver.", json_schema_extra=INFERENCE_ONLY)
    solver: SolverConfig = Field(
        HeunConfig(name="heun"),
        description="How particles follow the flow.",
        json_schema_extra=INFERENCE_ONLY,
    )
    network: DenoiserConfig = Field(SMALL, description="The network v.")

    def build(self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS) -> FreeParticleModel:
        del inputs
        flow = Straight(self.network.build_denoiser(shape, EMBEDDING.size))
        schedule = UniformTime(1.0, GaussianPrior(), any_grid=True)
        return FreeParticleModel(flow, schedule, self.solver, self.sampling_steps, shape)


class HeunsDiscriminatorConfig(ParticleModelConfig):
    """A Discriminator Flow whose particles are simulated by Heun's method: it is fitted to them."""

    taxonomy: ClassVar = (TaxonomyRow("discriminator", False, ("sampling_steps",), "nowhere"),)

    name: Literal["heuns_discriminator"]
    sampling_steps: int = Field(4, ge=1, description="N of the solver.")
    network: DiscriminatorConfig = Field(SMALL, description="The network f(x, t).")

    def build(self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS) -> FreeParticleModel:
        del inputs
        network = self.network.build_discriminator(shape, EMBEDDING.size)
        flow = DiscriminatorFlow(network, EMBEDDING.build(), "vanilla", None)
        schedule = UniformTime(5.0, GaussianPrior())
        return FreeParticleModel(flow, schedule, HeunConfig(name="heun"), self.sampling_steps, shape)


class Pull(Flow):
    """Towards the mean of the data."""

    role = "pull"

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.network = nn.Identity()
        self.register_buffer("mean", mean)

    def direction(self, x: Tensor, t: Tensor | None, rng: torch.Generator) -> Tensor:
        """From a particle to the mean."""
        del t, rng
        towards: Tensor = self.get_buffer("mean") - self.network(x)
        return towards


class PullConfig(ParticleModelConfig):
    """A closed form, in which there is nothing to train."""

    taxonomy: ClassVar = (TaxonomyRow("kernel", False, (), "nowhere"),)

    name: Literal["pull"]

    @property
    def trains(self) -> bool:
        return False

    @property
    def kept_samples(self) -> int:
        return 100

    def build(self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS) -> FreeParticleModel:
        mean = torch.zeros(shape) if inputs.samples is None else inputs.samples.mean(0)
        schedule = UniformTime(1.0, GaussianPrior())
        return FreeParticleModel(Pull(mean), schedule, EulerConfig(name="euler"), 5, shape)
