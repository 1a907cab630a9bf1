"""Discriminator Flow: free particles that follow a time-dependent discriminator (20), no generator."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from gpm_tune.config import MAX_MAGNITUDE, MAX_SAMPLING_STEPS
from gpm_tune.models.configuration import ParticleModelConfig, TaxonomyRow
from gpm_tune.models.flow import NO_INPUTS, FlowInputs
from gpm_tune.models.flows.adversarial import GradientPenalty, LossName
from gpm_tune.models.flows.discriminator import DiscriminatorFlow
from gpm_tune.models.particle_model import FreeParticleModel, GaussianPrior, UniformTime
from gpm_tune.networks import DCGANDiscriminatorConfig, DiscriminatorConfig
from gpm_tune.networks.embedding import FourierConfig
from gpm_tune.networks.initialization import Orthogonal
from gpm_tune.sampling.solvers import TimeSolverConfig
from gpm_tune.sampling.solvers.euler import EulerConfig


class DiscrFlowConfig(ParticleModelConfig):
    """Discriminator Flow: particles follow a discriminator told the time. Defaults: MNIST as in the paper."""

    paper: ClassVar[str] = "section 4.2, (20), Algorithm 2; appendix B.2, Algorithm 3"
    title: ClassVar[str] = "Discriminator Flow"
    taxonomy: ClassVar = (
        TaxonomyRow(
            "discriminator",
            False,
            (
                "sampling_steps",
                "solver.name",
                "eta",
                "loss",
                "gradient_penalty.weight",
                "entropy",
                "ignore_time",
            ),
            paper,
        ),
    )

    name: Literal["discr_flow"]
    loss: LossName = Field("ipm", description="Adversarial loss of discriminator and particles (15)(16).")
    sampling_steps: int = Field(
        64,
        ge=1,
        le=MAX_SAMPLING_STEPS,
        description="N: steps of the solver from the prior to the data (Algorithm 3).",
    )
    solver: TimeSolverConfig = Field(
        EulerConfig(name="euler"), description="How particles follow the flow, in training and in sampling."
    )
    eta: float = Field(
        2.0, gt=0, le=MAX_MAGNITUDE, description="η: gradient strength, the length of the flow (Algorithm 3)."
    )
    gradient_penalty: GradientPenalty | None = Field(
        GradientPenalty(), description="Regularisation R(f) of the discriminator (15); null for none."
    )
    entropy: float = Field(
        0.0,
        ge=0,
        le=MAX_MAGNITUDE,
        description="Entropy regularisation: Brownian noise of this variance over the path.",
    )
    prior: GaussianPrior = Field(GaussianPrior(), description="Where particles start.")
    ignore_time: bool = Field(
        False, description="Do not tell the discriminator the time, as DGGF does not (section 4.4)."
    )
    time_embedding: FourierConfig = Field(
        FourierConfig(), description="How the discriminator is told the time (appendix D.2)."
    )
    discriminator: DiscriminatorConfig = Field(
        DCGANDiscriminatorConfig(name="dcgan", first_bias=True, init=Orthogonal()),
        description="The network f(x, t).",
    )

    @field_validator("solver")
    @classmethod
    def _refuse_noise_of_noise_levels(cls, solver: TimeSolverConfig) -> TimeSolverConfig:
        solver.check_over_time()
        return solver

    @field_validator("discriminator")
    @classmethod
    def _refuse_batch_statistics(cls, discriminator: DiscriminatorConfig) -> DiscriminatorConfig:
        if getattr(discriminator, "norm", "none") != "none":
            raise ValueError("a batch norm would make free particles depend on each other; choose norm: none")
        return discriminator

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a network cannot take samples of this shape."""
        self.discriminator.check_shape(shape)

    def build(self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS) -> FreeParticleModel:
        """The untrained model for samples of this shape; uses torch's global random state."""
        del inputs
        embedding = None if self.ignore_time else self.time_embedding.build()
        size = 0 if self.ignore_time else self.time_embedding.size
        network = self.discriminator.build_discriminator(shape, size)
        flow = DiscriminatorFlow(network, embedding, self.loss, self.gradient_penalty)
        schedule = UniformTime(self.eta, self.prior, diffusion=self.entropy)
        return FreeParticleModel(flow, schedule, self.solver, self.sampling_steps, shape)
