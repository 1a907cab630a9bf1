"""Euler's method: closed forms, order of convergence, and the shrinking simulation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpm_tune.sampling.euler import euler_path, euler_until


def decay(x: Tensor, _t: Tensor) -> Tensor:
    return -x


def test_the_path_is_the_closed_form_of_eulers_method() -> None:
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    path = list(euler_path(decay, x, 10))
    assert len(path) == 10
    for i, state in enumerate(path, start=1):
        torch.testing.assert_close(state, x * 0.9**i)


def test_convergence_is_of_first_order() -> None:
    def error(steps: int) -> float:
        *_, end = euler_path(decay, torch.ones(1, 1, dtype=torch.float64), steps)
        return abs(end.item() - math.exp(-1))

    assert error(100) / error(200) == pytest.approx(2, rel=0.02)


def test_the_field_is_evaluated_at_grid_times() -> None:
    seen: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return torch.zeros_like(x)

    list(euler_path(field, torch.zeros(1, 2), 4))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def swirl(x: Tensor, t: Tensor) -> Tensor:
    """A field whose arithmetic is the same for every row, whatever the batch."""
    return torch.stack([-x[:, 1], x[:, 0]], dim=1) * (1 + t[:, None]) + x.square()


@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1)))
)
def test_random_stops_give_bitwise_the_states_of_the_full_paths(case: tuple[int, list[int]]) -> None:
    steps, stops = case
    start = torch.randn(len(stops), 2, generator=torch.Generator().manual_seed(0)) * 0.3
    states = torch.stack([start, *euler_path(swirl, start, steps)])
    expected = states[torch.tensor(stops), torch.arange(len(stops))]
    assert torch.equal(euler_until(swirl, start, torch.tensor(stops), steps), expected)


def test_only_the_needed_evaluations_are_made() -> None:
    rows = 0

    def field(x: Tensor, _t: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return torch.zeros_like(x)

    stops = torch.tensor([0, 3, 1, 3])
    euler_until(field, torch.zeros(4, 2), stops, 5)
    assert rows == stops.sum()
