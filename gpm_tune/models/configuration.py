"""What a model's configuration tells of it: the base class of all models, those of plug-ins included."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from gpm_tune.config import Config
from gpm_tune.paths import LocalPath


class TaxonomyRow(NamedTuple):
    """A combination of flow and generator (Table 1), its knobs, and where the paper has it."""

    flow: Literal["score", "discriminator", "kernel"]
    generator: bool
    knobs: tuple[str, ...]  # paths into `model` that a study would search
    paper: str


class TeacherConfig(Config):
    """The frozen denoiser of the data: an EDM, given in one of three ways."""

    paper: ClassVar[str] = "section 4.1, appendix B.1.1"

    checkpoint: LocalPath | None = Field(None, description="Folder of a trained EDM's checkpoint.")
    run: str | None = Field(None, description="MLflow run id of a trained EDM.")
    experiment: dict[str, Any] | None = Field(
        None,
        description="Experiment of an EDM, or the file that has one: trained once, and shared by all "
        "trials with the same.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> TeacherConfig:
        if sum(value is not None for value in (self.checkpoint, self.run, self.experiment)) != 1:
            raise ValueError("give exactly one of checkpoint, run, experiment")
        return self


class ParticleModelConfig(Config):
    """A model that an experiment chooses by `name`.

    What differs between kinds of models is asked here; members override what their answer differs in. They
    add `taxonomy`, and `build(shape, inputs)`: the untrained ParticleModel for samples of this shape, which
    uses torch's global random state.
    """

    title: ClassVar[str] = ""  # in figures; empty for its name
    taxonomy: ClassVar[tuple[TaxonomyRow, ...]]  # as `gpm-tune models` prints it
    solvers: ClassVar[tuple[str, ...]] = ()  # that may sample from it; none with a generator

    @property
    def has_generator(self) -> bool:
        """Whether it samples by a generator, in place of a path that free particles follow."""
        return False

    @property
    def trains(self) -> bool:
        """Whether there is anything to be trained."""
        return True

    @property
    def kept_samples(self) -> int:
        """How many real samples its flow keeps."""
        return 0

    @property
    def scores_data(self) -> bool:
        """Whether its flow's network denoises data, so that it can be a teacher."""
        return False

    @property
    def scores_generated(self) -> bool:
        """Whether its flow's network denoises generated samples, and directions are of two scores (19)."""
        return False

    @property
    def given_teacher(self) -> TeacherConfig | None:
        """Where the denoiser of the data that its flow follows is to be had; None for a flow without one."""
        return None

    @property
    def teacher_dropout(self) -> bool:
        """Whether its teacher's dropout acts."""
        return False

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a network cannot take, or make, samples of this shape."""
