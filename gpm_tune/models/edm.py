"""EDM: score-based diffusion (7)(8), and, with Langevin dynamics as its solver, NCSN (4)(6)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from gpm_tune.config import INFERENCE_ONLY, MAX_MAGNITUDE, MAX_SAMPLING_STEPS, MIN_MAGNITUDE, Config
from gpm_tune.models.configuration import ParticleModelConfig, TaxonomyRow
from gpm_tune.models.flow import NO_INPUTS, FlowInputs
from gpm_tune.models.flows.score import DataScore, Denoiser, TrainingNoise
from gpm_tune.models.particle_model import FreeParticleModel, NoiseLevels
from gpm_tune.networks import DenoiserConfig, UNetConfig
from gpm_tune.networks.embedding import EmbeddingConfig, PositionalConfig
from gpm_tune.sampling.schedules import NoiseRange
from gpm_tune.sampling.solvers import HeunConfig, SolverConfig


class DenoiserPart(Config):
    """A denoiser D(x; σ): a network, and how it is told the noise level."""

    paper: ClassVar[str] = "appendix B.1.1, (23)(24)"

    noise_embedding: EmbeddingConfig = Field(
        PositionalConfig(), description="How the network is told the noise level, as c_noise = ln(σ)/4."
    )
    sigma_data: float = Field(
        0.5,
        ge=MIN_MAGNITUDE,
        le=MAX_MAGNITUDE,
        description="σ_data of the preconditioning: standard deviation of the data.",
    )
    network: DenoiserConfig = Field(
        UNetConfig(name="unet", channels=16, blocks=1, dropout=0.13),
        description="The network F that the preconditioning wraps.",
    )

    def build(self, shape: tuple[int, ...]) -> Denoiser:
        """The untrained denoiser of samples of this shape; uses torch's global random state."""
        network = self.network.build_denoiser(shape, self.noise_embedding.size)
        return Denoiser(network, self.noise_embedding.build(), self.sigma_data)


class EDMConfig(ParticleModelConfig):
    """EDM (Karras et al. 2022): particles follow the score of the data. Defaults: MNIST, as in the paper."""

    paper: ClassVar[str] = "section 2.2, (7)(8); NCSN, (4)(6), with the solver `langevin`"
    title: ClassVar[str] = "EDM"
    taxonomy: ClassVar = (
        TaxonomyRow(
            "score",
            False,
            (
                "sampling_steps",
                "solver.name",
                "solver.stochastic",
                "solver.s_churn",
                "sampling_noise.sigma_max",
                "sampling_noise.sigma_min",
                "sampling_noise.rho",
                "training_noise.mean",
                "training_noise.std",
            ),
            paper,
        ),
    )
    solvers: ClassVar[tuple[str, ...]] = ("euler", "heun", "langevin")

    name: Literal["edm"]
    denoiser: DenoiserPart = Field(DenoiserPart(), description="The denoiser D(x; σ) of the data.")
    training_noise: TrainingNoise = Field(
        TrainingNoise(), description="Noise levels at which the denoiser is trained."
    )
    sampling_noise: NoiseRange = Field(
        NoiseRange(),
        description="Noise levels of the grid in sampling.",
        json_schema_extra=INFERENCE_ONLY,
    )
    sampling_steps: int = Field(
        32,
        ge=1,
        le=MAX_SAMPLING_STEPS,
        description="N: steps of the solver from σ_max to 0.",
        json_schema_extra=INFERENCE_ONLY,
    )
    solver: SolverConfig = Field(
        HeunConfig(name="heun"),
        description="How particles follow the flow.",
        json_schema_extra=INFERENCE_ONLY,
    )

    @property
    def scores_data(self) -> bool:
        """Its denoiser gives the score of the data (24)."""
        return True

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where the network cannot take samples of this shape."""
        self.denoiser.network.check_shape(shape)

    def build(self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS) -> FreeParticleModel:
        """The untrained model for samples of this shape; uses torch's global random state."""
        del inputs
        flow = DataScore(self.denoiser.build(shape), self.training_noise)
        schedule = NoiseLevels(self.sampling_noise)
        return FreeParticleModel(flow, schedule, self.solver, self.sampling_steps, shape)
