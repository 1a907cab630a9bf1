"""GAN: a generator that follows a discriminator (15)(16)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from gpm_tune.config import MAX_WIDTH
from gpm_tune.models.configuration import ParticleModelConfig, TaxonomyRow
from gpm_tune.models.flow import NO_INPUTS, FlowInputs
from gpm_tune.models.flows.adversarial import GradientPenalty, LossName
from gpm_tune.models.flows.discriminator import DiscriminatorFlow
from gpm_tune.models.particle_model import GeneratorModel
from gpm_tune.networks import (
    DCGANDiscriminatorConfig,
    DCGANGeneratorConfig,
    DiscriminatorConfig,
    GeneratorConfig,
)


class GANConfig(ParticleModelConfig):
    """GAN: a generator follows a discriminator. Defaults: MNIST, as in the paper."""

    paper: ClassVar[str] = "section 3.2, (15)(16)"
    title: ClassVar[str] = "GAN"
    taxonomy: ClassVar = (
        TaxonomyRow(
            "discriminator",
            True,
            ("discriminator_steps", "loss", "gradient_penalty.weight", "latent"),
            paper,
        ),
    )

    name: Literal["gan"]
    loss: LossName = Field("vanilla", description="Adversarial loss of discriminator and generator (15)(16).")
    discriminator_steps: int = Field(
        1, ge=1, description="n_D: discriminator steps per generator step; training steps count the former."
    )
    gradient_penalty: GradientPenalty | None = Field(
        None, description="Regularisation R(f) of the discriminator (15); null for none."
    )
    discriminator: DiscriminatorConfig = Field(
        DCGANDiscriminatorConfig(name="dcgan", norm="batch"), description="The network f(x)."
    )
    latent: int = Field(128, ge=1, le=MAX_WIDTH, description="Dimension of z ~ N(0, I).")
    generator: GeneratorConfig = Field(DCGANGeneratorConfig(name="dcgan"), description="The network g(z).")

    @property
    def has_generator(self) -> bool:
        """It has one."""
        return True

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a network cannot take or make samples of this shape."""
        self.discriminator.check_shape(shape)
        self.generator.check_shape(shape)

    def build(self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS) -> GeneratorModel:
        """The untrained model for samples of this shape; uses torch's global random state."""
        del inputs
        network = self.discriminator.build_discriminator(shape, 0)
        flow = DiscriminatorFlow(network, None, self.loss, self.gradient_penalty)
        generator = self.generator.build_generator(self.latent, shape)
        return GeneratorModel(flow, generator, self.latent, self.discriminator_steps, shape)
