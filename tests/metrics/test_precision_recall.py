"""Precision and recall: closed forms, the reference implementation, and the error of the recall."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from gpm_tune.metrics import FeatureExtractor, Quality, Real, precision_recall
from gpm_tune.metrics.precision_recall import Manifold


def normal(n: int, dimensions: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_sets_have_all_and_distant_sets_nothing() -> None:
    x = normal(200)
    assert (Manifold(x)(x).precision, Manifold(x)(x).recall) == (1, 1)
    far = Manifold(x)(x + 1000)
    assert (far.precision, far.recall, far.recall_error) == (0, 0, 0)


@given(st.integers(0, 100), st.integers(1, 12), st.sampled_from([2, 128, 300]), st.floats(0, 100))
def test_sets_with_duplicates_have_all_of_themselves(
    seed: int, different: int, dimensions: int, away: float
) -> None:
    points = away + normal(different, dimensions, seed)
    rng = torch.Generator().manual_seed(seed)
    x, y = (points[torch.randint(different, (n,), generator=rng)] for n in (40, 60))
    overlap = Manifold(x)(x)
    assert (overlap.precision, overlap.recall) == (1, 1)
    among = torch.tensor([bool((x == point).all(1).any()) for point in y])
    assert Manifold(x)(y).precise[among].all(), "what is in the reference is precise"


def test_one_picture_repeated_is_that_picture() -> None:
    """Through the feature network, in batches of whatever sizes."""
    one = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    real = Real(one.repeat(40, 1, 1, 1), FeatureExtractor("small", None, "cpu"))
    quality = Quality(["precision", "recall"], real)
    for n in (12, 40, 501):
        images = one.repeat(n, 1, 1, 1)
        for size in (1, 7, n):
            measured = quality.measure(torch.cat([quality.features(part) for part in images.split(size)]))
            assert (measured["precision"], measured["recall"]) == (1, 1)


def test_a_collapsed_set_is_precise_and_recalls_little() -> None:
    real = normal(500)
    collapsed = Manifold(real)(real[:1] + 1e-3 * normal(300, seed=1))
    assert collapsed.precision == 1
    assert collapsed.recall < 0.01


def test_points_on_a_line_in_closed_form() -> None:
    """Balls of whole numbers have radius 2 inside, 3 at the ends: the first 7 samples lie in -3..12."""
    real, samples = torch.arange(10.0)[:, None], torch.arange(6.0, 26.0)[:, None]
    overlap = Manifold(real)(samples)
    assert overlap.precise.tolist() == [True] * 7 + [False] * 13
    assert overlap.recalled.tolist() == [False] * 3 + [True] * 7  # 3 is 3 from the first sample, at 6
    assert overlap.alone[0] == 2  # 3 and 4 are only in the first one's ball


def test_they_are_those_of_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose older versions have the sets the other way round."""
    monkeypatch.setattr(precision_recall, "CHUNK", 70)
    real, samples = normal(300), 0.8 * normal(250, seed=1) + 0.3
    overlap = Manifold(real)(samples)
    expected = calculate_precision_recall_full(samples, real)
    assert overlap.precision > overlap.recall + 0.1
    assert sorted((overlap.precision, overlap.recall)) == pytest.approx(sorted(expected), abs=1e-6)


def test_the_error_of_the_recall_is_how_much_it_varies() -> None:
    manifold = Manifold(normal(400, seed=999))
    overlaps = [manifold(0.7 * normal(200, seed=seed)) for seed in range(60)]
    spread = torch.tensor([overlap.recall for overlap in overlaps]).std().item()
    errors = torch.tensor([overlap.recall_error for overlap in overlaps])
    assert 0.8 * spread < errors.mean().item() < 1.6 * spread
