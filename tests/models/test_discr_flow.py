"""Discriminator Flow against the full simulation of Algorithm 3, and its counted NFE."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from gpm_tune.models import DiscrFlow, DiscrFlowConfig
from gpm_tune.models.adversarial import input_gradient
from gpm_tune.sampling.euler import euler_path, euler_until


def build(**changes: object) -> DiscrFlow:
    torch.manual_seed(0)
    mlp = {"name": "mlp", "width": 32, "depth": 2, "init": {"name": "default"}}
    keys = {"name": "discr_flow", "sampling_steps": 8, "discriminator": mlp, **changes}
    return DiscrFlowConfig.model_validate(keys).build((2,))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_velocity_is_eta_times_the_gradient_of_minus_c_of_f() -> None:
    """Against a finite difference, with the non-linear c of the vanilla loss."""
    model = build(loss="vanilla", eta=3.0).double()
    x, t = torch.randn(4, 2).double(), torch.full((4,), 0.3).double()

    def h(y: Tensor) -> Tensor:
        return -torch.nn.functional.softplus(-model.discriminator(y, model.embedding(t)))

    epsilon = 1e-6
    differences = [(h(x + d) - h(x - d)) / (2 * epsilon) for d in epsilon * torch.eye(2).double()]
    torch.testing.assert_close(model.velocity(x, t), 3.0 * torch.stack(differences, 1), rtol=1e-5, atol=1e-7)


def test_times_drawn_before_the_simulation_give_the_full_simulations_states() -> None:
    """The same discriminator, start and times: bitwise the same particles, network and all."""
    model = build()
    start, stops = torch.randn(64, 2), torch.randint(8, (64,), generator=rng())
    states = torch.stack([start, *euler_path(model.velocity, start, 8)])
    picked = states[stops, torch.arange(64)]
    shrunk = euler_until(model.velocity, start, stops, 8)
    torch.testing.assert_close(shrunk, picked, rtol=0, atol=1e-6)


def test_states_and_times_have_the_full_simulations_distribution() -> None:
    """Independent runs of both ways: times and states pass two-sample tests."""
    model = build(eta=6.0)
    n = 4000
    full_stops = torch.randint(8, (n,), generator=rng(1))
    start = torch.randn(n, 2, generator=rng(2))
    states = torch.stack([start, *euler_path(model.velocity, start, 8)])
    full = states[full_stops, torch.arange(n)]
    stops = torch.randint(8, (n,), generator=rng(3))
    shrunk = euler_until(model.velocity, torch.randn(n, 2, generator=rng(4)), stops, 8)
    assert stats.ks_2samp(full_stops, stops).pvalue > 0.001
    for coordinate in range(2):
        assert stats.ks_2samp(full[:, coordinate], shrunk[:, coordinate]).pvalue > 0.001
    late = [full[full_stops >= 6, 0], shrunk[stops >= 6, 0]]  # and jointly with the time
    assert stats.ks_2samp(*late).pvalue > 0.001


def test_the_loss_is_taken_at_the_particles_own_times() -> None:
    """Times are uniform on {0, …, (N-1)/N}, and those of fake, real and penalty are the same."""
    model = build()
    seen: list[Tensor] = []
    model.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model.loss(torch.randn(256, 2), rng())
    fake, real, penalty = seen[-3:]
    assert torch.equal(fake, real)
    assert torch.equal(fake, penalty)
    grid = model.embedding(torch.arange(8) / 8)
    apart = (fake[:, None] - grid).norm(dim=2)
    which = apart.argmin(1)
    assert apart.amin(1).max() < 1e-4
    assert stats.chisquare(torch.bincount(which, minlength=8)).pvalue > 0.001


def test_the_simulation_leaves_no_gradients_and_training_reaches_every_parameter() -> None:
    model = build()
    terms = model.loss(torch.randn(32, 2), rng())
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nfe_is_counted_and_early_stops_come_from_the_same_path() -> None:
    model = build()
    samples = model.sample(50, rng(), after=(2, 5))
    assert [s.nfe for s in samples] == [2, 5, 8]
    start = torch.randn(50, 2, generator=rng())
    states = list(euler_path(model.velocity, start, 8))
    for nfe, particles in samples:
        torch.testing.assert_close(particles, states[nfe - 1])


def test_the_prior_has_the_configured_moments() -> None:
    model = build(eta=1e-12, prior={"mean": 2.0, "std": 0.5})
    (samples,) = model.sample(20_000, rng())
    assert samples.particles.mean().item() == pytest.approx(2.0, abs=0.02)
    assert samples.particles.std().item() == pytest.approx(0.5, abs=0.02)


def test_an_ipm_flow_moves_towards_the_data_when_trained() -> None:
    """A short real training: particles start at the origin and must reach data around (3, 0)."""
    model = build(eta=6.0, gradient_penalty={"weight": 1.0})
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.5, 0.999))
    generator = rng()
    for _ in range(300):
        real = torch.tensor([3.0, 0.0]) + 0.3 * torch.randn(64, 2, generator=generator)
        loss = torch.stack(list(model.loss(real, generator).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean = model.sample(500, generator)[-1].particles.mean(0)
    assert torch.linalg.vector_norm(mean - torch.tensor([3.0, 0.0])) < 0.5


def test_input_gradient_works_without_grad_mode() -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            input_gradient(lambda x: x.square().sum(1), torch.ones(1, 2)), torch.full((1, 2), 2.0)
        )
