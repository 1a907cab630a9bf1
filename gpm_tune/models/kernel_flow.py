"""Gradient flows of functionals in closed form (Table 2), and Stein's, with a generator or without."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from gpm_tune.config import INFERENCE_ONLY, MAX_MAGNITUDE, MAX_SAMPLING_STEPS, MAX_WIDTH
from gpm_tune.models.configuration import ParticleModelConfig, TaxonomyRow
from gpm_tune.models.flow import NO_INPUTS, FlowInputs
from gpm_tune.models.flows.kernel import MMD, AnyFunctional, KernelFlow
from gpm_tune.models.particle_model import (
    FreeParticleModel,
    GaussianPrior,
    GeneratorModel,
    UniformTime,
)
from gpm_tune.networks import GeneratorConfig
from gpm_tune.sampling.solvers import TimeSolverConfig
from gpm_tune.sampling.solvers.euler import EulerConfig

KNOBS = ("functionals", "data_samples")
FREE = "section 2.1, (2)(3), Table 2; Stein: section 3.3, (17)"
INTERACTING = "section 3.1, (10)-(14)"


class KernelFlowConfig(ParticleModelConfig):
    """A flow in closed form, without network: nothing is trained, unless a generator follows it."""

    paper: ClassVar[str] = f"{FREE}; with a generator: {INTERACTING}"
    title: ClassVar[str] = "Kernel flow"
    taxonomy: ClassVar = (
        TaxonomyRow(
            "kernel",
            False,
            (*KNOBS, "sampling_steps", "solver.name", "eta"),
            FREE,
        ),
        TaxonomyRow("kernel", True, (*KNOBS, "latent"), INTERACTING),
    )

    name: Literal["kernel_flow"]
    functionals: Annotated[tuple[AnyFunctional, ...], Field(min_length=1)] = Field(
        (MMD(name="mmd"),), description="What particles descend: a weighted sum."
    )
    data_samples: int = Field(
        1000, ge=1, le=1_000_000, description="Samples of the data that the flow keeps."
    )
    # A generator trains without these; without one, nothing is trained.
    sampling_steps: int = Field(
        100,
        ge=1,
        le=MAX_SAMPLING_STEPS,
        description="N: steps of the solver, without a generator.",
        json_schema_extra=INFERENCE_ONLY,
    )
    solver: TimeSolverConfig = Field(
        EulerConfig(name="euler"),
        description="How particles follow the flow, without a generator.",
        json_schema_extra=INFERENCE_ONLY,
    )
    eta: float = Field(
        10.0,
        gt=0,
        le=MAX_MAGNITUDE,
        description="η: the length of the flow, without a generator.",
        json_schema_extra=INFERENCE_ONLY,
    )
    prior: GaussianPrior = Field(
        GaussianPrior(),
        description="Where particles start, without a generator.",
        json_schema_extra=INFERENCE_ONLY,
    )
    latent: int = Field(128, ge=1, le=MAX_WIDTH, description="Dimension of z ~ N(0, I), with a generator.")
    generator: GeneratorConfig | None = Field(None, description="The network g(z); null for free particles.")

    @field_validator("solver")
    @classmethod
    def _refuse_noise_of_noise_levels(cls, solver: TimeSolverConfig) -> TimeSolverConfig:
        solver.check_over_time()
        return solver

    @property
    def has_generator(self) -> bool:
        """Where one is asked for."""
        return self.generator is not None

    @property
    def trains(self) -> bool:
        """The generator, where there is one."""
        return self.has_generator

    @property
    def kept_samples(self) -> int:
        """Those that it compares particles with."""
        return self.data_samples

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a network cannot make samples of this shape."""
        if self.generator is not None:
            self.generator.check_shape(shape)

    def build(
        self, shape: tuple[int, ...], inputs: FlowInputs = NO_INPUTS
    ) -> FreeParticleModel | GeneratorModel:
        """The model for samples of this shape; uses torch's global random state."""
        flow = KernelFlow(self.functionals, shape, self.data_samples, inputs)
        if self.generator is not None:
            generator = self.generator.build_generator(self.latent, shape)
            return GeneratorModel(flow, generator, self.latent, 1, shape)
        schedule = UniformTime(self.eta, self.prior)
        return FreeParticleModel(flow, schedule, self.solver, self.sampling_steps, shape)
