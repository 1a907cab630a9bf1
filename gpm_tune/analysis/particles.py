"""Particles in the plane, where their flow points, and what they descend (Figures 8 to 12).

Free particles are shown over inference time, along their path; those of a generator over training time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gpm_tune.analysis.retraining import Origin, start, train_to
from gpm_tune.errors import UserError
from gpm_tune.models import ParticleModel
from gpm_tune.models.flow import Flow, evaluating
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Trainer
from gpm_tune.training.description import build_empty

CROWD = 500  # a kernel flow's particles interact: so many are simulated, however few are shown
DRAWS = 64  # a Score GAN's direction is an expectation over noise, of which this is the mean
PIXELS = 100  # of the background, along a side
MARGIN = 1.05  # of the frame
SYMBOLS = {"sigma": "σ"}  # of times, where they are not called by their symbol
Spacing = Literal["even", "geometric"]


@dataclass(frozen=True)
class Snapshot:
    """Particles at one moment, and where their flow points."""

    title: str
    moment: dict[str, float]  # step, t, sigma, nfe: what the moment is called in tables
    x: Tensor  # (n, 2)
    arrows: dict[str, Tensor]  # name -> (n, 2); none where the path has ended
    half: float  # of the frame's width
    loss: Tensor | None = None  # c(f) on a grid of the frame, (PIXELS, PIXELS)


@dataclass(frozen=True)
class Scene:
    """What is seen at all moments: the model, the data, and how many particles."""

    origin: Origin
    model: ParticleModel  # without weights
    data: Tensor  # (n, 2)
    seed: int
    noise: float | None = None  # σ of noised particles

    @property
    def steps(self) -> int:
        """The last step: of sampling for free particles, of training for a generator's."""
        return self.model.steps or self.origin.experiment.training.steps

    @property
    def is_free(self) -> bool:
        """Whether its moments are those of sampling, not of training."""
        return self.model.steps > 0

    @property
    def trace(self) -> dict[str, Any]:
        """Columns of every row of the table."""
        experiment = self.origin.experiment
        return {
            "run": self.origin.name,
            "checkpoint": (self.origin.saved and self.is_free and str(self.origin.saved.folder)) or None,
            "model": experiment.model.name,
            "solver": self.model.solver_name,
            "sampling_steps": self.steps if self.is_free else None,
            "training_steps": experiment.training.steps,
            "training_seed": experiment.seed,
            "noise": self.noise,
            "seed": self.seed,
        }

    @property
    def particles(self) -> int:
        """How many are shown."""
        return len(self.data)

    @property
    def simulated(self) -> int:
        """How many are simulated."""
        return max(self.particles, CROWD) if self.model.flow.interacts else self.particles

    def frame(self, x: Tensor) -> float:
        """Half the width of a frame around the data and the particles (n, 2)."""
        return MARGIN * max(self.data.abs().max().item(), x.abs().max().item())


def new_scene(origin: Origin, particles: int, seed: int, noise: float | None) -> Scene:
    """A scene with as many points of the validation data as particles.

    noise: for a Score GAN, the noise level at which its direction is split into its two parts.
    Raises UserError where the data have no two dimensions, or other models are to be split.
    """
    experiment = origin.experiment
    if experiment.data.shape != (2,):
        raise UserError(
            f"{origin.name}: its data, '{experiment.data.name}', have the shape {experiment.data.shape}; "
            "particles and arrows are drawn for data in the plane, such as 'gaussians'"
        )
    model = build_empty(experiment)[0]
    if noise is not None and not experiment.model.scores_generated:
        raise UserError(
            f"--noise: only the direction of a 'score_gan' has two scores; {origin.name} is a "
            f"'{experiment.model.name}'"
        )
    data = experiment.data.load(experiment.seed).validation[:particles]
    if len(data) < particles:
        raise UserError(f"--particles {particles}: the validation data have {len(data)} points only")
    return Scene(origin, model, data, seed, noise)


def choose(scene: Scene, panels: int, spacing: Spacing | None) -> list[int]:
    """Steps from 0 to the last one; those of training come after a generator's update.

    spacing: geometric ones are each twice as late as the one before; None for even steps of sampling, and
    geometric ones of training.
    """
    total, multiple = scene.steps, scene.model.flow_steps
    if (spacing or ("even" if scene.is_free else "geometric")) == "even":
        wanted = np.linspace(0, total, panels)
    else:
        wanted = np.append(0, total * 2.0 ** np.arange(2 - panels, 1))
    steps = {min(total, int(np.ceil(step / multiple)) * multiple) for step in wanted}
    return sorted(steps)


def check_steps(scene: Scene, steps: Sequence[int]) -> list[int]:
    """The steps in order. Raises UserError where one lies beyond the last."""
    if max(steps) > scene.steps:
        what = "sampling" if scene.is_free else "training"
        raise UserError(f"--at {max(steps)}: the last {what} step of {scene.origin.name} is {scene.steps}")
    return sorted(set(steps))


def take(scene: Scene, steps: Sequence[int], home: Home, device: str) -> list[Snapshot]:
    """A snapshot after each of the steps, ascending: of a run's best weights, or of training again.

    Raises UserError where the run, its data or its teacher cannot be had.
    """
    origin = scene.origin
    if not scene.is_free:
        return list(over_training(start(origin.experiment, home, device), scene, steps))
    if origin.saved is not None:
        model = origin.saved.load(device)
    else:
        trainer = start(origin.experiment, home, device)
        train_to(trainer, origin.experiment.training.steps, origin.experiment.training.steps)
        model = trainer.evaluated_model
    return over_inference(model, scene, steps)


def over_inference(model: ParticleModel, scene: Scene, steps: Sequence[int]) -> list[Snapshot]:
    """Free particles after so many sampling steps each, from the prior (step 0) to the end."""
    rng = torch.Generator(model.origin.device).manual_seed(scene.seed)
    with evaluating(model):
        states = list(model.process(model.noise(scene.simulated, rng), rng))
        return [_on_path(model, scene, step, *states[step], rng) for step in steps]


def _on_path(
    model: ParticleModel, scene: Scene, step: int, nfe: int, x: Tensor, rng: torch.Generator
) -> Snapshot:
    grid, name = model.grid().points, model.time
    tau, symbol = grid[step], SYMBOLS.get(name, name)
    # The last step was made by the flow as it is before the end, where nothing was trained or defined.
    t = x.new_full((len(x),), grid[min(step, model.steps - 1)])
    is_clean = step == model.steps and tau == 0  # without noise there is no score
    arrows = {} if is_clean else {"direction": model.flow.direction(x, t, rng)}
    title, moment = f"{symbol} = {tau:.3g}, NFE {nfe}", {"step": step, name: tau, "nfe": nfe}
    return _snapshot(scene, model.flow, title, moment, x, arrows, t[:1])


def over_training(trainer: Trainer, scene: Scene, steps: Iterable[int]) -> Iterator[Snapshot]:
    """A generator's particles, of the same latent noise, after so many training steps each, ascending."""
    model, total = trainer.model, trainer.experiment.training.steps
    rng = torch.Generator(model.origin.device).manual_seed(scene.seed)
    z = model.noise(scene.simulated, rng)
    epsilon = torch.randn(len(z), 2, device=z.device, generator=rng)
    for step in steps:
        train_to(trainer, step, total)
        # The same random numbers at every moment: what differs between them is the model.
        rng.manual_seed(scene.seed)
        with evaluating(model):
            x = model.transport(z, rng)[-1].x
            if scene.noise is not None:
                x = x + scene.noise * epsilon
                arrows = model.flow.scores(x, x.new_full((len(x),), scene.noise))
            else:
                arrows = {"direction": _mean_direction(model.flow, x, rng)}
            title = _training_title(step, total, model.flow_steps)
            moment = {"step": step, "t": step / total, "generator_updates": step // model.flow_steps}
            yield _snapshot(scene, model.flow, title, moment, x, arrows, None)


def _training_title(step: int, total: int, flow_steps: int) -> str:
    updates = f" ({step // flow_steps:,} of the generator)" if flow_steps > 1 else ""
    return f"t = {step / total:.3g}: step {step:,}{updates}"


def _mean_direction(flow: Flow, x: Tensor, rng: torch.Generator) -> Tensor:
    """The flow's direction at particles (B, 2); its mean where it draws noise."""
    draws = DRAWS if flow.is_random else 1
    return torch.stack([flow.direction(x, None, rng) for _ in range(draws)]).mean(0)


def _loss(flow: Flow, half: float, t: Tensor | None, device: torch.device) -> Tensor | None:
    """c(f(x, t)) on a grid of the frame, rows from below; None where the flow cannot tell it. t: (1,)."""
    line = torch.linspace(-half, half, PIXELS, device=device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y], dim=-1).view(-1, 2)
    times = None if t is None else t.expand(len(points))
    loss = flow.particle_loss(points, times)
    return None if loss is None else loss.view(PIXELS, PIXELS).cpu()


def _snapshot(
    scene: Scene,
    flow: Flow,
    title: str,
    moment: dict[str, float],
    x: Tensor,
    arrows: dict[str, Tensor],
    t: Tensor | None,
) -> Snapshot:
    """What is shown of the particles that are simulated; t: as `_loss` takes it."""
    x, device = x[: scene.particles].cpu(), x.device
    shown = {name: arrow[: scene.particles].cpu() for name, arrow in arrows.items()}
    if not all(each.isfinite().all() for each in (x, *shown.values())):
        raise UserError(
            f"{scene.origin.name}: particles or their directions are not finite at {title}; "
            "show earlier steps (--at), or another run"
        )
    half = scene.frame(x)
    return Snapshot(title, moment, x, shown, half, _loss(flow, half, t, device))
