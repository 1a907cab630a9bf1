"""EDM: score-based diffusion (7)(8), and, with Langevin dynamics as its solver, NCSN (4)(6)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from gpm_tune.config import INFERENCE_ONLY, MAX_MAGNITUDE, MAX_SAMPLING_STEPS, MIN_MAGNITUDE, Config
from gpm_tune.models.configuration import ParticleModelConfig, TaxonomyRow
from gpm_tune.models.flow import NO_INPUTS, FlowInputs
from gpm_tune.models.flows.score import DataScore, Denoiser, TrainingNoise
from gpm_tune.models.particle_model import FreeParticleModel, NoiseLevels
from gpm_tune.networks import DenoiserConfig, UNetConfig
from gpm_tune.networks.embedding import EmbeddingConfig, PositionalConfig
from gpm_tune.sampling.grids import TOLD_APART, NoiseGridConfig, NoiseRange, RhoGrid
from gpm_tune.sampling.integration import draws_noise
from gpm_tune.sampling.solvers import SolverConfig
from gpm_tune.sampling.solvers.heun import HeunConfig


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
                "solver.order",
                "solver.stochastic",
                "solver.s_churn",
                "grid.name",
                "grid.end",
                "analytic_first_step",
                "sampling_noise.sigma_max",
                "sampling_noise.sigma_min",
                "sampling_noise.rho",
                "training_noise.mean",
                "training_noise.std",
            ),
            paper,
        ),
    )

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
    grid: NoiseGridConfig = Field(
        RhoGrid(name="rho"),
        description="How the noise levels of the grid are spaced, and where it ends.",
        json_schema_extra=INFERENCE_ONLY,
    )
    sampling_steps: int = Field(
        32,
        ge=1,
        le=MAX_SAMPLING_STEPS,
        description="N: steps of the solver from σ_max to the grid's end.",
        json_schema_extra=INFERENCE_ONLY,
    )
    solver: SolverConfig = Field(
        HeunConfig(name="heun"),
        description="How particles follow the flow.",
        json_schema_extra=INFERENCE_ONLY,
    )
    analytic_first_step: bool = Field(
        False,
        description="Whether the slope at σ_max is taken to be x/√(1 + σ²), which costs no evaluation.",
        json_schema_extra=INFERENCE_ONLY,
    )

    @model_validator(mode="after")
    def _refuse_grids_on_which_solvers_fail(self) -> EDMConfig:
        grid = self.grid.grid(self.sampling_steps, self.sampling_noise)
        for before, after in pairwise(grid.points):
            if after > (1 - TOLD_APART) * before:
                raise ValueError(
                    f"grid: {self.sampling_steps:,} sampling steps give noise levels too close to each "
                    f"other, {before:.9g} and {after:.9g}: choose fewer steps, or a wider range"
                )
        if self.grid.is_learned and draws_noise(self.solver, grid):
            raise ValueError(
                f"grid: a learned grid is for solvers that draw no noise, but '{self.solver.name}' does: "
                "choose another grid, or another solver"
            )
        return self

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
        schedule = NoiseLevels(self.sampling_noise, self.grid, self.analytic_first_step)
        return FreeParticleModel(flow, schedule, self.solver, self.sampling_steps, shape)
