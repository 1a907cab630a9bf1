"""The integrator: closed forms, noise, and the simulation that shrinks as particles arrive."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpm_tune.sampling.grids import uniform_grid
from gpm_tune.sampling.integration import Grid, Solver, draws_noise, path, stopped
from gpm_tune.sampling.solvers.euler import EulerConfig
from gpm_tune.sampling.solvers.heun import HeunConfig
from gpm_tune.sampling.solvers.ipndm import IPNDMConfig

RNG = torch.Generator().manual_seed(0)
EULER = EulerConfig(name="euler")


def decay(x: Tensor, _t: float) -> Tensor:
    return -x


def test_the_path_is_the_closed_form_of_eulers_method() -> None:
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    states = list(path(EULER, decay, x, uniform_grid(10), RNG))
    assert len(states) == 10
    for i, state in enumerate(states, start=1):
        torch.testing.assert_close(state, x * 0.9**i)


def test_the_field_is_evaluated_at_grid_times() -> None:
    seen: list[float] = []

    def field(x: Tensor, t: float) -> Tensor:
        seen.append(t)
        return torch.zeros_like(x)

    list(path(EULER, field, torch.zeros(1, 2), uniform_grid(4), RNG))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_noise_has_the_brownian_variance_and_spares_the_last_step() -> None:
    """Diffusion v on every step but the last of N: variance v (N-1)/N."""
    *_, before, end = path(EULER, lambda x, _t: 0 * x, torch.zeros(20_000, 1), uniform_grid(5), RNG, 4.0)
    assert torch.equal(before, end)
    assert end.var().item() == pytest.approx(4 * 4 / 5, rel=0.05)


def test_a_random_stop_has_the_noise_of_its_steps() -> None:
    stops = torch.arange(4).repeat(10_000)
    ends = stopped(EULER, lambda x, _t: 0 * x, torch.zeros(40_000, 1), uniform_grid(4), stops, RNG, 1.0)
    for stop in range(4):
        assert ends[stops == stop].var().item() == pytest.approx(stop / 4, rel=0.06) if stop else True
    assert not ends[stops == 0].any()


def swirl(x: Tensor, t: float) -> Tensor:
    """A field whose arithmetic is the same for every row, whatever the batch."""
    return torch.stack([-x[:, 1], x[:, 0]], dim=1) * (1 + t) + x.square()


@pytest.mark.parametrize(
    "solver", [EULER, HeunConfig(name="heun"), IPNDMConfig(name="ipndm", order=4)], ids=lambda s: s.name
)
@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1)))
)
def test_random_stops_give_bitwise_the_states_of_the_full_paths(
    solver: Solver, case: tuple[int, list[int]]
) -> None:
    steps, stops = case
    start = torch.randn(len(stops), 2, generator=torch.Generator().manual_seed(0)) * 0.3
    states = torch.stack([start, *path(solver, swirl, start, uniform_grid(steps), RNG)])
    expected = states[torch.tensor(stops), torch.arange(len(stops))]
    found = stopped(solver, swirl, start, uniform_grid(steps), torch.tensor(stops), RNG)
    assert torch.equal(found, expected)


def test_noise_is_found_out() -> None:
    grid = Grid((2.0, 1.0, 0.5, 0.0))
    assert not draws_noise(EULER, grid)
    assert draws_noise(EulerConfig(name="euler", stochastic=0.1), grid)
    assert draws_noise(HeunConfig(name="heun", s_churn=1, s_min=0.9), grid)
    assert not draws_noise(HeunConfig(name="heun", s_churn=1, s_min=5), grid), "nowhere on this grid"


def test_only_the_needed_evaluations_are_made() -> None:
    rows = 0

    def field(x: Tensor, _t: float) -> Tensor:
        nonlocal rows
        rows += len(x)
        return torch.zeros_like(x)

    stops = torch.tensor([0, 3, 1, 3])
    stopped(EULER, field, torch.zeros(4, 2), uniform_grid(5), stops, RNG)
    assert rows == stops.sum()
