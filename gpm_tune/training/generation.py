"""What trained models generate: samples at an NFE, how they come about, and interpolations."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from gpm_tune.config import MAX_SAMPLING_STEPS, nearest
from gpm_tune.documents import reason
from gpm_tune.errors import UserError
from gpm_tune.models import ParticleModel, Samples, SamplingOptions
from gpm_tune.sampling.integration import Solver
from gpm_tune.sampling.interpolation import INTERPOLATIONS
from gpm_tune.sampling.solvers import solver_names
from gpm_tune.training.experiment import Experiment
from gpm_tune.training.pictures import most_images, picture
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.trainer import FRAMING, draw


@dataclass(frozen=True)
class ModelSampler:
    """A trained model, and how it is to be sampled.

    nfe: to be spent per sample; None for the model's full NFE. solver: one as `read_solver` reads it, or
    None for the model's own. steps: of the grid; None for the model's own, or where there are many grids for
    the one that fits the NFE. A grid longer than the NFE is left early. saved: where the model is from.
    """

    experiment: Experiment
    model: ParticleModel
    nfe: int | None = None
    solver: str | None = None
    steps: int | None = None
    saved: SavedModel | None = None

    def check(self) -> None:
        """Raise UserError where the model cannot be sampled like this."""
        if not self.model.steps:
            self._check_generator()
            return
        name, trained = self.experiment.model.name, self.model.steps
        if not self.model.any_grid:
            if self.steps not in (None, trained):
                raise UserError(
                    f"model '{name}' knows the grid of {trained} sampling steps only, not one of "
                    f"{self.steps}; for a lower NFE it stops early: give the NFE instead"
                )
            full = self.model.full_nfe(SamplingOptions(self._solver()))
            if self.nfe is not None and not 1 <= self.nfe <= full:
                raise UserError(
                    f"NFE {self.nfe} is beyond the {trained} sampling steps that model '{name}' was "
                    f"trained on; valid: 1 to {full}"
                )
            return
        if self.steps is None and self.sampling_steps == 0:
            raise UserError(f"NFE {self.nfe} does not suffice for a step of solver '{self.solver_name}'")
        steps = self.sampling_steps
        if steps is not None and not 1 <= steps <= MAX_SAMPLING_STEPS:
            asked = f"{steps:,} sampling steps" if self.nfe is None else f"NFE {self.nfe:,}: too many steps"
            raise UserError(f"{asked}; valid: 1 to {MAX_SAMPLING_STEPS:,}. Change --nfe or --steps")

    def _check_generator(self) -> None:
        name = self.experiment.model.name
        if self.solver is not None or self.steps is not None:
            raise UserError(
                f"model '{name}' samples by its generator: it has no solver and no sampling steps"
            )
        if self.nfe not in (None, 1):
            raise UserError(f"model '{name}' samples by its generator: NFE {self.nfe} is not its 1")

    @property
    def solver_name(self) -> str:
        """What samples: the solver, or the generator."""
        return self.solver or self.model.solver_name

    @property
    def sampling_steps(self) -> int | None:
        """N of the grid; None for a generator."""
        return self.options.steps

    def _solver(self) -> Solver | None:
        """The solver asked for; with the experiment's options where it is the model's own."""
        if self.solver is None or self.solver == self.model.solver_name:
            return self.model.solver
        return read_solver(self.experiment, self.solver)

    def draw(self, n: int, seed: int) -> Samples:
        """The NFE, counted, and n samples (n, *shape) on the CPU, images in [-1, 1].

        Raises UserError as `check` does, and where samples are not finite.
        """
        self.check()
        rng = torch.Generator(self.model.origin.device).manual_seed(seed)
        found = draw(self.model, n, rng, self.options)
        nfe = max((cost for cost in found if self.nfe is None or cost <= self.nfe), default=None)
        if nfe is None:
            raise UserError(f"no state of the path is reached with NFE {self.nfe}; the first: {min(found)}")
        return self._finish(Samples(nfe, found[nfe]))

    def transport(self, noise: Tensor, seed: int) -> Samples:
        """As `draw`, the samples (n, *shape) that are made from given noise (n, *noise_shape)."""
        self.check()
        rng = torch.Generator(self.model.origin.device).manual_seed(seed)
        found = self.model.transport(noise.to(self.model.origin), rng, self.options)
        return self._finish([state for state in found if self.nfe is None or state.nfe <= self.nfe][-1])

    def process(self, n: int, seed: int) -> list[Samples]:
        """How n samples come about: the prior's particles, at NFE 0, and what they are after every step.

        The last ones are those that `draw` gives, but none is clamped: what is still on its way is no image
        yet. Raises UserError where the model has a generator, or particles are not finite.
        """
        self.check()
        model = self.model
        if not model.steps:
            raise UserError(
                f"model '{self.experiment.model.name}' has no process of generation: a single evaluation "
                "of its generator turns noise of another shape into a sample"
            )
        rng = torch.Generator(model.origin.device).manual_seed(seed)
        path = model.process(model.noise(n, rng), rng, self.options)
        return [self.check_finite(state) for state in path if self.nfe is None or state.nfe <= self.nfe]

    def check_finite(self, samples: Samples) -> Samples:
        """The samples, on the CPU. Raises UserError unless all numbers in them are finite."""
        nfe, x = samples.nfe, samples.x.cpu()
        lost = len(x) - int(x.isfinite().flatten(1).all(1).sum())
        if lost:
            model = f"model '{self.experiment.model.name}'" + (
                f" of {self.saved.folder}" if self.saved else ""
            )
            advice = "another NFE or solver, or another run" if self.sampling_steps else "another run"
            raise UserError(
                f"{lost:,} of {len(x):,} samples are not finite ({model}, {self.solver_name}, NFE {nfe}): "
                f"try {advice}"
            )
        return Samples(nfe, x)

    def _finish(self, samples: Samples) -> Samples:
        """Finite samples, on the CPU; images in the range of data, which flows overshoot."""
        nfe, x = self.check_finite(samples)
        return Samples(nfe, x.clamp(-1, 1) if len(self.experiment.data.shape) == 3 else x)

    @property
    def options(self) -> SamplingOptions:
        """As the model takes it; nothing is simulated beyond what is asked for."""
        solver = self._solver()
        if self.model.any_grid and self.steps is None and self.nfe is not None:
            return SamplingOptions(solver, self.model.longest_grid(self.nfe, solver))
        stops = (self.nfe,) if self.nfe is not None else ()
        own_steps = self.model.steps or None
        return SamplingOptions(solver, own_steps if self.steps is None else self.steps, stops)


def read_solver(experiment: Experiment, text: str) -> Solver:
    """A solver that may sample from the experiment's model: NAME, or with options NAME:KEY=VALUE,KEY=VALUE.

    Raises UserError where there is none like that.
    """
    name, _, options = text.partition(":")
    keys = {"name": name} | dict(option.partition("=")[::2] for option in options.split(",") if option)
    model = experiment.model
    try:
        changed = type(model).model_validate({**model.model_dump(), "solver": keys})
    except ValidationError as error:
        first = error.errors()[0]
        keys_below = "".join(f"{key}: " for key in first["loc"][2:])
        raise UserError(f"solver '{text}' of model '{model.name}': {keys_below}{reason(first)}") from error
    solver: Solver = changed.solver  # type: ignore[union-attr] # else it was an unknown key
    return solver


def takes_solver(experiment: Experiment, text: str) -> bool:
    """Whether the model has a solver of this name, whatever its options.

    Raises UserError where no model has one.
    """
    name = text.partition(":")[0]
    if name not in solver_names():
        raise UserError(f"unknown solver '{name}'; {nearest(name, solver_names())}")
    try:
        read_solver(experiment, name)
    except UserError:
        return False
    return True


def interpolate(sampler: ModelSampler, *, rows: int, columns: int, seed: int, method: str) -> Samples:
    """Samples (rows, columns, *shape) between pairs of noises, by one of the four methods (appendix C.3).

    Raises UserError where the method is unknown or the model cannot be sampled like this.
    """
    check_method(method)
    rng = torch.Generator().manual_seed(seed)
    shape = sampler.model.noise_shape
    ends = torch.randn(2, rows, *shape, generator=rng).flatten(2)
    between = INTERPOLATIONS[method](ends[0], ends[1], torch.linspace(0, 1, columns))
    noise = between.transpose(0, 1).reshape(rows * columns, *shape)
    nfe, x = sampler.transport(noise, seed)
    return Samples(nfe, x.unflatten(0, (rows, columns)))


def check_method(method: str) -> None:
    """Raise UserError unless there is such an interpolation."""
    if method not in INTERPOLATIONS:
        raise UserError(f"unknown interpolation '{method}'; {nearest(method, INTERPOLATIONS)}")


def load_sampler(
    saved: SavedModel,
    *,
    nfe: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
    device: str = "cpu",
) -> ModelSampler:
    """A trained model, ready to be sampled. Raises UserError where that is impossible."""
    sampler = ModelSampler(saved.experiment, saved.load(device), nfe, solver, steps, saved)
    sampler.check()
    return sampler


def write_samples(sampler: ModelSampler, file: Path, *, n: int, seed: int) -> int:
    """Write n samples as a picture (.png), or with their NFE and seed as arrays (.npz); returns the NFE.

    Raises UserError where the file has another ending, or they are too many for a picture, before anything
    is computed.
    """
    _check_output(sampler, file, n)
    nfe, x = sampler.draw(n, seed)
    if file.suffix == ".png":
        file.write_bytes(picture(x, real=_points_of_data(sampler.experiment)))
    else:
        np.savez_compressed(file, samples=x.numpy(), nfe=nfe, seed=seed)
    return nfe


def write_interpolation(
    sampler: ModelSampler, file: Path, *, rows: int, columns: int, seed: int, method: str
) -> None:
    """Write interpolations as a picture (.png), a row each, or as an array (.npz).

    Raises UserError as `write_samples` does.
    """
    _check_output(sampler, file, rows * columns)
    x = interpolate(sampler, rows=rows, columns=columns, seed=seed, method=method).x
    if file.suffix == ".png":
        file.write_bytes(picture(x.flatten(0, 1), columns, _points_of_data(sampler.experiment)))
    else:
        np.savez_compressed(file, samples=x.numpy(), seed=seed)


def _check_output(sampler: ModelSampler, file: Path, count: int) -> None:
    """Raise UserError unless so many samples can be written to such a file; points always can."""
    if file.suffix not in (".png", ".npz"):
        raise UserError(f"{file}: expected a name that ends in .png or .npz")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")
    shape = sampler.experiment.data.shape
    if file.suffix == ".png" and len(shape) == 3 and count > (most := most_images(shape)):
        raise UserError(
            f"{file}: a picture shows at most {most:,} images of {shape[-2]} × {shape[-1]}, not {count:,}\n"
            f"help: ask for fewer, or write all of them to {file.with_suffix('.npz')}"
        )


def _points_of_data(experiment: Experiment) -> Tensor | None:
    """What frames pictures of points; None for images, and where the data are not on this machine."""
    if experiment.features:
        return None
    with suppress(UserError):
        return experiment.data.load(experiment.seed).validation[:FRAMING]
    return None
