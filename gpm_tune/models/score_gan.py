"""Score GAN: a generator that follows scores (Algorithm 1)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from gpm_tune.config import MAX_MAGNITUDE, MAX_WIDTH
from gpm_tune.models.configuration import ParticleModelConfig, TaxonomyRow, TeacherConfig
from gpm_tune.models.edm import DenoiserPart
from gpm_tune.models.flow import NO_INPUTS, FlowInputs
from gpm_tune.models.flows.score import ScoreDifference
from gpm_tune.models.particle_model import GeneratorModel
from gpm_tune.networks import DCGANGeneratorConfig, GeneratorConfig, UNetConfig
from gpm_tune.sampling.grids import NoiseRange


class ScoreGANConfig(ParticleModelConfig):
    """Score GAN: a generator follows scores of data and its own samples. Defaults: MNIST, as in the paper."""

    paper: ClassVar[str] = "section 4.1, Algorithm 1, (19); appendix B.1"
    title: ClassVar[str] = "Score GAN"
    taxonomy: ClassVar = (
        TaxonomyRow(
            "score",
            True,
            ("score_steps", "alpha", "beta", "stochastic", "noise.sigma_min", "noise.sigma_max", "noise.rho"),
            paper,
        ),
    )

    name: Literal["score_gan"]
    teacher: TeacherConfig = Field(description="The frozen denoiser of the data.")
    score_steps: int = Field(
        1,
        ge=1,
        description="K: score steps per generator step; training steps count the former (appendix C.4).",
    )
    alpha: float = Field(1.0, ge=0, le=MAX_MAGNITUDE, description="α: weight of the data's score (27).")
    beta: float = Field(
        1.0,
        ge=0,
        le=MAX_MAGNITUDE,
        description="β: weight of the generated distribution's score (27); α = 2 with β = 1 provokes mode "
        "collapse (appendix C.2).",
    )
    stochastic: float = Field(
        0.0,
        ge=0,
        le=1,
        description="λ: share of the generated distribution's score that is noise (appendix A.1, (21)(22)).",
    )
    noise: NoiseRange = Field(
        NoiseRange(sigma_min=0.32, sigma_max=40.0, rho=3.0),
        description="Noise levels at which scores are taken: σ(u) for u ~ U(0, 1) (28).",
    )
    score_dropout: bool = Field(
        False,
        description="Whether the dropout of both denoisers acts when the generator follows their scores, as "
        "in the authors' code; else they are in evaluation mode.",
    )
    generated: DenoiserPart = Field(
        DenoiserPart(network=UNetConfig(name="unet", channels=64, blocks=2, dropout=0.13)),
        description="The denoiser of the generated distribution.",
    )
    latent: int = Field(128, ge=1, le=MAX_WIDTH, description="Dimension of z ~ N(0, I).")
    generator: GeneratorConfig = Field(DCGANGeneratorConfig(name="dcgan"), description="The network g(z).")

    @property
    def has_generator(self) -> bool:
        """It has one."""
        return True

    @property
    def scores_generated(self) -> bool:
        """By D_gen, fitted `score_steps` times per step of the generator."""
        return True

    @property
    def given_teacher(self) -> TeacherConfig:
        """D_data."""
        return self.teacher

    @property
    def teacher_dropout(self) -> bool:
        """Of both denoisers, or of none."""
        return self.score_dropout

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a network cannot take or make samples of this shape."""
        self.generated.network.check_shape(shape)
        self.generator.check_shape(shape)

    def build(self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS) -> GeneratorModel:
        """The untrained model for samples of this shape; uses torch's global random state."""
        flow = ScoreDifference(
            self.generated.build(shape),
            inputs.teacher,
            self.noise,
            alpha=self.alpha,
            beta=self.beta,
            stochastic=self.stochastic,
            dropout=self.score_dropout,
        )
        generator = self.generator.build_generator(self.latent, shape)
        return GeneratorModel(flow, generator, self.latent, self.score_steps, shape)
