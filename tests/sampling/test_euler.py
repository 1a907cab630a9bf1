"""Euler's method: closed forms, order of convergence, noise, and the shrinking simulation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpm_tune.sampling.euler import Euler
from gpm_tune.sampling.schedules import uniform_grid

RNG = torch.Generator().manual_seed(0)


def decay(x: Tensor, _t: Tensor) -> Tensor:
    return -x


def test_the_path_is_the_closed_form_of_eulers_method() -> None:
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    path = list(Euler().path(decay, x, uniform_grid(10), RNG))
    assert len(path) == 10
    for i, state in enumerate(path, start=1):
        torch.testing.assert_close(state, x * 0.9**i)


def test_convergence_is_of_first_order() -> None:
    def error(steps: int) -> float:
        *_, end = Euler().path(decay, torch.ones(1, 1, dtype=torch.float64), uniform_grid(steps), RNG)
        return abs(end.item() - math.exp(-1))

    assert error(100) / error(200) == pytest.approx(2, rel=0.02)


def test_the_field_is_evaluated_at_grid_times() -> None:
    seen: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return torch.zeros_like(x)

    list(Euler().path(field, torch.zeros(1, 2), uniform_grid(4), RNG))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_noise_has_the_brownian_variance_and_spares_the_last_step() -> None:
    """Amplitude a on every step but the last of N: variance a² (N-1)/N."""
    solver = Euler(amplitude=lambda _t: 2.0)
    *_, before, end = solver.path(lambda x, _t: 0 * x, torch.zeros(20_000, 1), uniform_grid(5), RNG)
    assert torch.equal(before, end)
    assert end.var().item() == pytest.approx(4 * 4 / 5, rel=0.05)


def test_a_random_stop_has_the_noise_of_its_steps() -> None:
    solver = Euler(amplitude=lambda _t: 1.0)
    stops = torch.arange(4).repeat(10_000)
    ends = solver.until(lambda x, _t: 0 * x, torch.zeros(40_000, 1), uniform_grid(4), stops, RNG)
    for stop in range(4):
        assert ends[stops == stop].var().item() == pytest.approx(stop / 4, rel=0.06) if stop else True
    assert not ends[stops == 0].any()


def swirl(x: Tensor, t: Tensor) -> Tensor:
    """A field whose arithmetic is the same for every row, whatever the batch."""
    return torch.stack([-x[:, 1], x[:, 0]], dim=1) * (1 + t[:, None]) + x.square()


@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1)))
)
def test_random_stops_give_bitwise_the_states_of_the_full_paths(case: tuple[int, list[int]]) -> None:
    steps, stops = case
    start = torch.randn(len(stops), 2, generator=torch.Generator().manual_seed(0)) * 0.3
    states = torch.stack([start, *Euler().path(swirl, start, uniform_grid(steps), RNG)])
    expected = states[torch.tensor(stops), torch.arange(len(stops))]
    assert torch.equal(Euler().until(swirl, start, uniform_grid(steps), torch.tensor(stops), RNG), expected)


def test_only_the_needed_evaluations_are_made() -> None:
    rows = 0

    def field(x: Tensor, _t: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return torch.zeros_like(x)

    stops = torch.tensor([0, 3, 1, 3])
    Euler().until(field, torch.zeros(4, 2), uniform_grid(5), stops, RNG)
    assert rows == stops.sum()
