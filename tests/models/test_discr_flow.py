"""Discriminator Flow against the full simulation of Algorithm 3, closed-form flows, and its counted NFE."""

import math

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from gpm_tune.models import DiscrFlowConfig, FreeParticleModel, SamplingOptions
from gpm_tune.models.flows.adversarial import input_gradient
from gpm_tune.models.flows.discriminator import DiscriminatorFlow
from gpm_tune.models.particle_model import GaussianPrior, UniformTime
from gpm_tune.sampling.integration import path
from gpm_tune.sampling.solvers.euler import EulerConfig


def build(**changes: object) -> FreeParticleModel:
    torch.manual_seed(0)
    mlp = {"name": "mlp", "width": 32, "depth": 2, "init": {"name": "default"}}
    keys = {"name": "discr_flow", "sampling_steps": 8, "discriminator": mlp, **changes}
    return DiscrFlowConfig.model_validate(keys).build((2,))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states_of(model: FreeParticleModel, start: Tensor) -> Tensor:
    """The full simulation: (N + 1, B, 2)."""
    grid = model.schedule.grid(model.steps)
    field = lambda x, t: model.velocity(x, x.new_full((len(x),), t), rng())  # noqa: E731
    return torch.stack([start, *path(model.solver, field, start, grid, rng())])


def test_velocity_is_eta_times_the_gradient_of_minus_c_of_f() -> None:
    """Against a finite difference, with the non-linear c of the vanilla loss."""
    model = build(loss="vanilla", eta=3.0).double()
    x, t = torch.randn(4, 2).double(), torch.full((4,), 0.3).double()
    flow = model.flow
    assert isinstance(flow, DiscriminatorFlow)
    assert flow.embedding is not None

    def h(y: Tensor) -> Tensor:
        return -torch.nn.functional.softplus(-flow.network(y, flow.embedding(t)))

    epsilon = 1e-6
    differences = [(h(x + d) - h(x - d)) / (2 * epsilon) for d in epsilon * torch.eye(2).double()]
    expected = 3.0 * torch.stack(differences, 1)
    torch.testing.assert_close(model.velocity(x, t, rng()), expected, rtol=1e-5, atol=1e-7)


def test_times_drawn_before_the_simulation_give_the_full_simulations_states() -> None:
    """The same discriminator, start and times: the same particles, network and all."""
    model = build()
    found, times = model.particles(64, rng())
    start = model.noise(64, rng())
    assert times is not None
    picked = states_of(model, start)[(times * 8).round().long(), torch.arange(64)]
    torch.testing.assert_close(found, picked, rtol=0, atol=1e-6)


def test_states_and_times_have_the_full_simulations_distribution() -> None:
    """Independent runs of both ways: times and states pass two-sample tests."""
    model = build(eta=6.0)
    n = 4000
    full_stops = torch.randint(8, (n,), generator=rng(1))
    full = states_of(model, torch.randn(n, 2, generator=rng(2)))[full_stops, torch.arange(n)]
    shrunk, times = model.particles(n, rng(3))
    assert times is not None
    stops = (times * 8).round().long()
    assert stats.ks_2samp(full_stops, stops).pvalue > 0.001
    for coordinate in range(2):
        assert stats.ks_2samp(full[:, coordinate], shrunk[:, coordinate]).pvalue > 0.001
    late = [full[full_stops >= 6, 0], shrunk[stops >= 6, 0]]  # and jointly with the time
    assert stats.ks_2samp(*late).pvalue > 0.001


def test_the_loss_is_taken_at_the_particles_own_times() -> None:
    """Times are uniform on {0, …, (N-1)/N}, and those of fake, real and penalty are the same."""
    model = build()
    flow = model.flow
    assert isinstance(flow, DiscriminatorFlow)
    assert flow.embedding is not None
    seen: list[Tensor] = []
    flow.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model.fit(torch.randn(256, 2), rng())
    fake, real, penalty = seen[-3:]
    assert torch.equal(fake, real)
    assert torch.equal(fake, penalty)
    grid = flow.embedding(torch.arange(8) / 8)
    apart = (fake[:, None] - grid).norm(dim=2)
    which = apart.argmin(1)
    assert apart.amin(1).max() < 1e-4
    assert stats.chisquare(torch.bincount(which, minlength=8)).pvalue > 0.001


def test_the_simulation_leaves_no_gradients_and_training_reaches_every_parameter() -> None:
    model = build()
    terms = model.fit(torch.randn(32, 2), rng())
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nfe_is_counted_and_early_stops_come_from_the_same_path() -> None:
    model = build()
    samples = model.sample(50, rng(), SamplingOptions(nfe=(2, 5)))
    assert [s.nfe for s in samples] == [2, 5, 8]
    states = states_of(model, model.noise(50, rng()))
    for nfe, particles in samples:
        torch.testing.assert_close(particles, states[nfe])


def test_the_prior_has_the_configured_moments() -> None:
    model = build(eta=1e-12, prior={"mean": 2.0, "std": 0.5})
    (samples,) = model.sample(20_000, rng())
    assert samples.x.mean().item() == pytest.approx(2.0, abs=0.02)
    assert samples.x.std().item() == pytest.approx(0.5, abs=0.02)


def test_entropy_regularisation_spreads_particles_by_its_variance() -> None:
    """Brownian noise on every step but the last: variance entropy · (N-1)/N besides the prior's."""
    model = build(eta=1e-12, entropy=3.0)
    (samples,) = model.sample(20_000, rng())
    assert samples.x.var().item() == pytest.approx(1 + 3.0 * 7 / 8, rel=0.03)


def test_a_flow_that_ignores_time_has_the_same_field_at_all_times() -> None:
    model, x = build(ignore_time=True), torch.randn(5, 2)
    early, late = (model.velocity(x, torch.full((5,), t), rng()) for t in (0.0, 0.9))
    assert torch.equal(early, late)
    told = build()
    early, late = (told.velocity(x, torch.full((5,), t), rng()) for t in (0.0, 0.9))
    assert not torch.allclose(early, late)


class LogRatio(nn.Module):
    """The optimal discriminator between N(1, s²) and what N(u0, v0) has become by a time (KL flow)."""

    def __init__(self, mean: float, std: float, duration: float) -> None:
        super().__init__()
        self.mean, self.std, self.duration = mean, std, duration

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of particles that started at N(0, 1), after t of the flow.

        dx = (∇log p - ∇log ρ) dt is linear: du/dt = (m - u)/s², dv/dt = 2 (1 - v/s²).
        """
        decay = torch.exp(-self.duration * t / self.std**2)
        return self.mean * (1 - decay), self.std**2 + (1 - self.std**2) * decay**2

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        mean, variance = self.moments(t)
        log_p = -(x[:, 0] - self.mean).square() / (2 * self.std**2)
        log_rho = -(x[:, 0] - mean).square() / (2 * variance)
        return log_p - log_rho


def test_the_log_ratio_discriminator_moves_gaussians_along_the_kl_flow() -> None:
    """IPM particles, h = f = log p/ρ_t (Table 2): mean and variance follow their closed forms."""
    ratio, eta = LogRatio(mean=2.0, std=0.6, duration=0.8), 0.8
    flow = DiscriminatorFlow(ratio, nn.Identity(), "ipm", None)
    schedule = UniformTime(eta, GaussianPrior())
    model = FreeParticleModel(flow, schedule, EulerConfig(name="euler"), 400, (1,)).double()
    samples = model.sample(40_000, rng(), SamplingOptions(nfe=(100, 200)))
    for nfe, x in samples:
        mean, variance = ratio.moments(torch.tensor(nfe / 400))
        assert x.mean().item() == pytest.approx(mean.item(), abs=0.02), f"mean after {nfe} steps"
        assert x.var().item() == pytest.approx(variance.item(), rel=0.03), f"variance after {nfe} steps"
    assert samples[-1].x.mean().item() > 1.7
    assert math.sqrt(samples[-1].x.var().item()) < 0.65


@pytest.mark.parametrize(
    ("solver", "nfe"), [({"name": "heun"}, 15), ({"name": "ipndm", "order": 2}, 8), ({"name": "ab"}, 8)]
)
def test_particles_follow_other_solvers_in_training_and_in_sampling(
    solver: dict[str, object], nfe: int
) -> None:
    model = build(solver=solver)
    start = torch.randn(64, 2, generator=rng(1))
    states = states_of(model, start)
    (end,) = model.transport(start, rng())
    assert (end.nfe, model.full_nfe()) == (nfe, nfe)
    torch.testing.assert_close(end.x, states[-1])
    generator = rng(2)
    noise = model.noise(64, generator)
    stops = torch.randint(8, (64,), generator=generator)
    particles = model.particles(64, rng(2))
    torch.testing.assert_close(particles.x, states_of(model, noise)[stops, torch.arange(64)])
    torch.testing.assert_close(particles.t, stops / 8)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"name": "euler", "stochastic": 0.5}, "solver.stochastic is for noise levels"),
        ({"name": "heun", "s_churn": 1.0}, "solver.s_churn is for noise levels"),
        ({"name": "dpmpp"}, "'ab', 'euler', 'heun', 'ipndm'"),
    ],
)
def test_what_needs_noise_levels_is_refused(solver: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(solver=solver)


def test_a_batch_norm_is_refused() -> None:
    with pytest.raises(ValidationError, match="free particles depend on each other"):
        DiscrFlowConfig.model_validate(
            {"name": "discr_flow", "discriminator": {"name": "dcgan", "norm": "batch"}}
        )


def test_an_ipm_flow_moves_towards_the_data_when_trained() -> None:
    """A short real training: particles start at the origin and must reach data around (3, 0)."""
    model = build(eta=6.0, gradient_penalty={"weight": 1.0})
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.5, 0.999))
    generator = rng()
    for _ in range(300):
        real = torch.tensor([3.0, 0.0]) + 0.3 * torch.randn(64, 2, generator=generator)
        loss = torch.stack(list(model.fit(real, generator).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean = model.sample(500, generator)[-1].x.mean(0)
    assert torch.linalg.vector_norm(mean - torch.tensor([3.0, 0.0])) < 0.5


def test_input_gradient_works_without_grad_mode() -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            input_gradient(lambda x: x.square().sum(1), torch.ones(1, 2)), torch.full((1, 2), 2.0)
        )
