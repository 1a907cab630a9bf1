"""The memorization gap: zero by chance, its sign, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpm_tune.errors import UserError
from gpm_tune.metrics.memorization import MemorizationGap
from gpm_tune.metrics.metric import Generated, Real
from gpm_tune.metrics.quality import Points
from gpm_tune.metrics.resampling import bootstrap_weights

TRAINING, HELD_OUT = 300, 100


def normal(n: int, seed: int) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def gap_of(make: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> float:
    """Of samples that are made of training and held-out ones."""
    training, held_out = normal(TRAINING, 3 * seed), normal(HELD_OUT, 3 * seed + 1)
    metric = MemorizationGap(Real(held_out, Points("cpu"), training=lambda: training))
    return metric.measure(Generated(make(training, held_out)))


def test_it_is_zero_on_average_where_nothing_is_memorized() -> None:
    gaps = torch.tensor([gap_of(lambda *_, s=s: normal(80, 3 * s + 2), s) for s in range(100)])
    assert abs(gaps.mean().item()) < 4 * gaps.std().item() / math.sqrt(len(gaps))


def test_memorized_samples_are_below_zero_by_their_share() -> None:
    noise = 1e-3 * normal(100, 2)
    assert gap_of(lambda training, _: training[:100] + noise) == -1
    half = gap_of(lambda training, _: torch.cat([training[:1000] + 0, normal(300, 2)]))
    assert half == pytest.approx(-0.5, abs=0.15)


def test_the_highest_is_that_of_copies_of_held_out_samples() -> None:
    assert gap_of(lambda _, held_out: held_out) == pytest.approx(TRAINING / HELD_OUT)


def test_what_is_in_both_sets_counts_for_neither() -> None:
    points = normal(50, 0)
    metric = MemorizationGap(Real(points, Points("cpu"), training=lambda: points))
    assert metric.measure(Generated(points)) == metric.measure(Generated(normal(40, 1))) == 0


def test_the_standard_error_is_how_much_it_varies() -> None:
    training = normal(TRAINING, 0)
    metric = MemorizationGap(Real(normal(HELD_OUT, 1), Points("cpu"), training=lambda: training))
    sets = [Generated(normal(80, 2 + i), bootstrap_weights(80, 50, i)) for i in range(80)]
    spread = torch.tensor([metric.measure(generated) for generated in sets]).std().item()
    error = torch.tensor([metric.error(generated) for generated in sets[:20]]).mean().item()
    assert 0.75 * spread < error < 1.3 * spread


def test_training_samples_are_not_compared_with_themselves() -> None:
    with pytest.raises(UserError, match=r"not with themselves\nhelp: choose another split than train"):
        MemorizationGap(Real(normal(50, 0), Points("cpu")))
