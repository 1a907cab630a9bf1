"""Particle models: a flow, with a generator or without. Simulation and generator step are written here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, TypeVar

import torch
from pydantic import Field as Key
from torch import Tensor, nn

from gpm_tune.config import MAX_MAGNITUDE, MAX_SAMPLING_STEPS, MIN_MAGNITUDE, Config
from gpm_tune.models.evaluations import count_evaluations
from gpm_tune.models.flow import Flow, Particles, Terms
from gpm_tune.sampling.grids import NoiseGrid, NoiseRange, uniform_grid
from gpm_tune.sampling.integration import Field, Grid, Solver, path, stopped
from gpm_tune.sampling.learned import FinePath
from gpm_tune.sampling.solvers.heun import HeunConfig

Network = TypeVar("Network", bound=nn.Module)
FINE_STEPS = 48  # of the path on which grids are learned: their levels are among its own
FINE_PARTICLES = 64


class Samples(NamedTuple):
    """Generated samples and what they cost."""

    nfe: int
    x: Tensor  # (n, *shape)


class SamplingOptions(NamedTuple):
    """How samples are made, where that is not left to the model; a generator has no choice."""

    solver: Solver | None = None
    steps: int | None = None  # of the grid
    # Further NFE than the full one: those that cannot be met are met from below, higher ones left out.
    nfe: Sequence[int] = ()


DEFAULT_SAMPLING = SamplingOptions()


def to_device(network: Network, device: torch.device | str) -> Network:
    """Move to a device, convolutions with their channels last in memory: faster on most."""
    return network.to(device).to(memory_format=torch.channels_last)


class ParticleModel(nn.Module, ABC):
    """What trains and samples alike, whatever the flow, with a generator or without.

    What differs between kinds of models is asked here.
    """

    origin: Tensor
    # Of the path from noise to samples; None and 0 where a generator makes them at once.
    solver: Solver | None = None
    steps: int = 0  # N, of the path's grid
    any_grid: bool = False  # whether fewer evaluations mean a coarser grid, not to stop early
    time: str = ""  # what the grid counts: t, or sigma
    flow_steps: int = 1  # fits of the flow's network per step of the generator

    def __init__(self, flow: Flow, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.flow = flow
        # Where the model is: device, dtype and shape of its samples.
        self.register_buffer("origin", torch.zeros(shape), persistent=False)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What is trained, each part by an optimiser of its own."""
        return {"flow": self.flow}

    @property
    def solver_name(self) -> str:
        """What samples: the solver, or the generator."""
        return "generator" if self.solver is None else self.solver.name

    def fit(self, real: Tensor, rng: torch.Generator) -> Terms:
        """The terms of the flow's loss on a real batch (B, *shape); their sum is to be minimised."""
        return self.flow.fit(real, lambda: self.particles(len(real), rng), rng)

    def generator_loss(self, n: int, rng: torch.Generator) -> Terms:
        """The terms of the generator's loss on n of its samples; none without a generator."""
        del n, rng
        return {}

    def grid(self, options: SamplingOptions = DEFAULT_SAMPLING) -> Grid:
        """The times, or noise levels, of the path; none without a path."""
        del options
        return Grid(())

    def full_nfe(self, options: SamplingOptions = DEFAULT_SAMPLING) -> int:
        """What a sample costs that is not stopped early."""
        del options
        return 1

    def longest_grid(self, nfe: int, solver: Solver | None = None) -> int:
        """The most steps of a path that so many evaluations allow; 0 if they allow none."""
        del nfe, solver
        return 0

    def weights_changed(self) -> None:
        """Forget what was found out about the weights, as they have changed."""

    @abstractmethod
    def particles(self, n: int, rng: torch.Generator) -> Particles:
        """n particles of the current model, as a flow's fit sees them, without gradients."""

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise from which one sample is made."""

    @abstractmethod
    def process(
        self, noise: Tensor, rng: torch.Generator, options: SamplingOptions = DEFAULT_SAMPLING
    ) -> Iterator[Samples]:
        """How samples come about from noise (n, *noise_shape): the last state is what they are.

        A path begins with the prior's particles, at NFE 0; a generator's samples are there at once.
        """

    def transport(
        self, noise: Tensor, rng: torch.Generator, options: SamplingOptions = DEFAULT_SAMPLING
    ) -> list[Samples]:
        """Samples made from noise (n, *noise_shape): one entry per NFE that came out, ascending.

        Those at lower NFE come from stopping on the way (Figure 7a).
        """
        return list(last_within(self.process(noise, rng, options), (*options.nfe, None)))

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        """Standard normal noise for n samples: (n, *noise_shape)."""
        like = self.origin
        return torch.randn(n, *self.noise_shape, device=like.device, dtype=like.dtype, generator=rng)

    def sample(
        self, n: int, rng: torch.Generator, options: SamplingOptions = DEFAULT_SAMPLING
    ) -> list[Samples]:
        """n samples from fresh noise; see `transport`."""
        return self.transport(self.noise(n, rng), rng, options)


class GeneratorModel(ParticleModel):
    """A flow with a generator (Int-PM): particles are g(z), and move by the steps of its parameters."""

    def __init__(
        self, flow: Flow, generator: nn.Module, latent: int, flow_steps: int, shape: tuple[int, ...]
    ) -> None:
        """flow_steps: n_D, or K: fits of the flow's network per generator step."""
        super().__init__(flow, shape)
        self.generator = generator
        self.latent = latent
        self.flow_steps = flow_steps

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The flow, and the generator that follows it."""
        return {"flow": self.flow, "generator": self.generator}

    def generator_loss(self, n: int, rng: torch.Generator) -> Terms:
        """-⟨g(z), ∇h(g(z)).detach()⟩, summed over dimensions, averaged over n samples (12)(25)."""
        x = self._generate(self.noise(n, rng))
        direction = self.flow.direction(x.detach(), None, rng)
        return {"generator": -(x * direction).flatten(1).sum(1).mean()}

    def particles(self, n: int, rng: torch.Generator) -> Particles:
        """g(z)."""
        with torch.no_grad():
            return Particles(self._generate(self.noise(n, rng)), None)

    def _generate(self, noise: Tensor) -> Tensor:
        """g(z) in the precision of z, whatever the generator computes with."""
        x: Tensor = self.generator(noise).to(noise.dtype)
        return x

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """z ~ N(0, I)."""
        return (self.latent,)

    def process(
        self, noise: Tensor, rng: torch.Generator, options: SamplingOptions = DEFAULT_SAMPLING
    ) -> Iterator[Samples]:
        """g(z), for one evaluation of the generator per sample, whatever is asked for besides."""
        del rng, options
        with count_evaluations(self.generator) as counter, torch.no_grad():
            x = self.generator(noise)
        return iter([Samples(counter.nfe(len(noise)), x)])


class GaussianPrior(Config):
    """π = N(mean, std² I), where particles start."""

    paper: ClassVar[str] = "section 2, (1)"

    mean: float = Key(0.0, ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, description="Mean of each coordinate.")
    std: float = Key(
        1.0, ge=MIN_MAGNITUDE, le=MAX_MAGNITUDE, description="Standard deviation of each coordinate."
    )


@dataclass(frozen=True)
class UniformTime:
    """Particles move by dx = η ∇h dt for t in [0, 1], with Brownian noise of this variance over the path."""

    eta: float
    prior: GaussianPrior
    any_grid: bool = False  # else the flow was fitted on its grid: fewer evaluations mean to stop early
    diffusion: float = 0.0
    name = "t"
    is_learned = False

    @property
    def rate(self) -> float:
        """dx/dt in units of ∇h."""
        return self.eta

    def grid(self, steps: int) -> Grid:
        """t_i = i/N. At t = 1 nothing was fitted."""
        return uniform_grid(steps)

    def field(self, velocity: Field, grid: Grid) -> Field:
        """As it is along the whole grid."""
        del grid
        return velocity


@dataclass(frozen=True)
class NoiseLevels:
    """Particles move by dx = -σ s(x; σ) dσ (8) along decreasing noise levels, from N(0, σ_max² I).

    analytic_first_step: whether the first slope is that of a normal law (Dockhorn et al.
    2022), which costs no evaluation.
    """

    noise: NoiseRange
    spacing: NoiseGrid
    analytic_first_step: bool = False
    name = "sigma"
    rate = -1.0  # dx/dσ in units of ∇h = σ s(x; σ)
    any_grid = True  # the flow knows every noise level: fewer evaluations mean a coarser grid
    diffusion = 0.0

    @property
    def is_learned(self) -> bool:
        """Whether grids are found for the weights."""
        return self.spacing.is_learned

    @property
    def prior(self) -> GaussianPrior:
        """What the data become at the highest noise level."""
        return GaussianPrior(std=self.grid(1).points[0])

    def grid(self, steps: int) -> Grid:
        """From the highest level down; of a spacing that is learned, before it is."""
        return self.spacing.grid(steps, self.noise)

    def field(self, velocity: Field, grid: Grid) -> Field:
        """dx/dσ, but for the first step x/√(1 + σ²) where it is analytic."""
        if not self.analytic_first_step:
            return velocity
        first = grid.points[0]
        return lambda x, sigma: x / math.sqrt(1 + sigma**2) if sigma == first else velocity(x, sigma)


Schedule = UniformTime | NoiseLevels


@lru_cache(maxsize=10_000)
def full_nfe(solver: Solver, schedule: Schedule, steps: int) -> int:
    """Evaluations along a whole path of so many steps, counted on a path of one number."""
    grid, calls = schedule.grid(steps), 0

    def velocity(x: Tensor, _tau: float) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    x = torch.zeros(1, 1, device="cpu")
    for _ in path(solver, schedule.field(velocity, grid), x, grid, torch.Generator()):
        pass
    return calls


class FreeParticleModel(ParticleModel):
    """A flow without generator (PM): each particle follows it from the prior to the data (1)."""

    solver: Solver

    def __init__(
        self,
        flow: Flow,
        schedule: Schedule,
        solver: Solver,
        steps: int,
        shape: tuple[int, ...],
    ) -> None:
        """steps: N, of the grid on which particles are simulated and, unless asked otherwise, sampled."""
        super().__init__(flow, shape)
        self.schedule = schedule
        self.solver = solver
        self.steps = steps
        self.any_grid = schedule.any_grid
        self.time = schedule.name
        self._fine_path: FinePath | None = None
        self._learned: dict[tuple[Solver, int], Grid] = {}

    def grid(self, options: SamplingOptions = DEFAULT_SAMPLING) -> Grid:
        """From the prior to the data; the one that suits solver and weights, where grids are learned."""
        solver, steps = options.solver or self.solver, options.steps or self.steps
        if not self.schedule.is_learned or steps >= FINE_STEPS:
            return self.schedule.grid(steps)
        if self._fine_path is None:
            self._fine_path = self._follow_finely()
        if (solver, steps) not in self._learned:
            fixed = self.schedule.grid(steps)
            field = self._field(fixed, torch.Generator(self.origin.device))
            self._learned[solver, steps] = self._fine_path.best_grid(steps, solver, field, [fixed])
        return self._learned[solver, steps]

    def _follow_finely(self) -> FinePath:
        """The path of some particles, always from the same noise, along the grid before it is learned."""
        rng = torch.Generator(self.origin.device).manual_seed(0)
        grid, slopes = self.schedule.grid(FINE_STEPS), {}
        field = self._field(grid, rng)

        def watched(x: Tensor, tau: float) -> Tensor:
            slopes[tau] = field(x, tau)  # Heun's method asks first where it guesses, then where it is
            return slopes[tau]

        x = self._start(self.noise(FINE_PARTICLES, rng))
        states = [x, *path(HeunConfig(name="heun"), watched, x, grid, rng)]
        return FinePath.of(grid, states, list(slopes.values()))

    def weights_changed(self) -> None:
        """Forget what was found out about the weights."""
        self._fine_path, self._learned = None, {}

    def full_nfe(self, options: SamplingOptions = DEFAULT_SAMPLING) -> int:
        """Of the whole path."""
        return full_nfe(options.solver or self.solver, self.schedule, options.steps or self.steps)

    def longest_grid(self, nfe: int, solver: Solver | None = None) -> int:
        """By trying; at most one more than is allowed."""
        solver = solver or self.solver
        counts = range(1, min(nfe, MAX_SAMPLING_STEPS) + 2)  # a step more than NFE, where one costs none
        return bisect_right(counts, nfe, key=lambda steps: full_nfe(solver, self.schedule, steps))

    def velocity(self, x: Tensor, tau: Tensor, rng: torch.Generator) -> Tensor:
        """dx/dτ at particles x (B, *shape) and times, or noise levels, τ (B,)."""
        return self.schedule.rate * self.flow.direction(x, tau, rng)

    def _field(self, grid: Grid, rng: torch.Generator) -> Field:
        """dx/dτ along a grid."""
        return self.schedule.field(lambda x, tau: self.velocity(x, x.new_full((len(x),), tau), rng), grid)

    def particles(self, n: int, rng: torch.Generator) -> Particles:
        """Particles stopped at random times k/N, k ~ U{0, …, N-1} (Algorithm 3)."""
        start = self._start(self.noise(n, rng))
        stops = torch.randint(self.steps, (n,), device=rng.device, generator=rng)
        grid = self.grid()
        field, diffusion = self._field(grid, rng), self.schedule.diffusion
        x = stopped(self.solver, field, start, grid, stops, rng, diffusion)
        times = torch.tensor(grid.points, dtype=x.dtype, device=stops.device)
        return Particles(x, times[stops].to(x.device))

    def _start(self, noise: Tensor) -> Tensor:
        """The prior's particles."""
        return self.schedule.prior.mean + self.schedule.prior.std * noise

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """A point of the prior, standardised."""
        return tuple(self.origin.shape)

    def transport(
        self, noise: Tensor, rng: torch.Generator, options: SamplingOptions = DEFAULT_SAMPLING
    ) -> list[Samples]:
        """The particles at the end of their path, preceded by what they are at lower NFE.

        Where the flow knows every grid, lower NFE come from coarser grids, unless `options.steps` fixes the
        grid; else from stopping on the way (Figure 7a).
        """
        if not self.any_grid or options.steps is not None:
            return super().transport(noise, rng, options)
        found: dict[int, Tensor] = {}
        lengths = {self.longest_grid(k, options.solver) for k in options.nfe}
        for length in sorted({*(k for k in lengths if 0 < k < self.steps), self.steps}):
            (end,) = super().transport(noise, rng, SamplingOptions(options.solver, length))
            found[end.nfe] = end.x
        return [Samples(cost, x) for cost, x in found.items()]

    def process(
        self, noise: Tensor, rng: torch.Generator, options: SamplingOptions = DEFAULT_SAMPLING
    ) -> Iterator[Samples]:
        """The particles of noise (n, *noise_shape) on their path: NFE 0, and after every step.

        What lies beyond the last one taken is not computed.
        """
        x, rows = self._start(noise), 0
        yield Samples(0, x)
        solver, grid = options.solver or self.solver, self.grid(options)
        states = path(solver, self._field(grid, rng), x, grid, rng, self.schedule.diffusion)
        for _ in range(grid.steps):
            with count_evaluations(self.flow.network) as counter:  # not of what others do between the steps
                x = next(states)
            rows += counter.rows
            yield Samples(round(rows / len(x)), x)


def last_within(path: Iterable[Samples], asked: Sequence[int | None]) -> Iterator[Samples]:
    """Of a path, the last state that each NFE allows, once, ascending; None allows its end.

    The path is not followed further than needed.
    """
    waiting = sorted({nfe for nfe in asked if nfe is not None})
    before = None
    for state in path:
        while waiting and state.nfe > waiting[0]:
            waiting.pop(0)
            if before is not None and before.nfe > 0:
                yield before
                before = None
        if not waiting and None not in asked:
            return
        before = state
    if before is not None:
        yield before
