"""Density and coverage, against closed forms that hold for any distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gpm_tune.metrics import density_coverage
from gpm_tune.metrics.density_coverage import NEIGHBOURS, Balls, Contents, Coverage, Density
from gpm_tune.metrics.metric import Generated, Real
from gpm_tune.metrics.quality import Points
from gpm_tune.metrics.resampling import bootstrap_weights


def normal(n: int, seed: int = 0, dimensions: int = 8) -> Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed))


def of_equal_distributions(n: int, draws: int) -> list[Contents]:
    return [Balls(normal(n, 2 * i))(normal(n, 2 * i + 1)) for i in range(draws)]


def test_of_equal_distributions_they_are_what_the_paper_derives() -> None:
    n, draws = 60, 200
    found = of_equal_distributions(n, draws)
    missed = math.prod((n - i) / (2 * n - i) for i in range(1, NEIGHBOURS + 1))
    for expected, values in (
        (1.0, torch.tensor([contents.density for contents in found])),
        (1 - missed, torch.tensor([contents.coverage for contents in found])),
    ):
        assert abs(values.mean().item() - expected) < 4 * values.std().item() / math.sqrt(draws)


def test_points_on_a_line_in_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balls of whole numbers have radius 3 inside, and 5 and 4 at the ends."""
    monkeypatch.setattr(density_coverage, "CHUNK", 3)
    contents = Balls(torch.arange(10.0)[:, None])(torch.tensor([[-5.0], [0.0], [100.0]]))
    assert contents.balls.tolist() == [1, 4, 0], "of -5 that about 0; of 0 those about 0, 1, 2, 3"
    assert contents.covered.tolist() == [True] * 4 + [False] * 6
    assert contents.alone.tolist() == [0, 3, 0]
    assert contents.density == pytest.approx(5 / 3 / NEIGHBOURS)


def test_an_outlier_among_the_samples_changes_nothing_and_repetition_only_the_density() -> None:
    """Of which recall, with balls about samples, is deceived (the paper's Figure 2)."""
    real, samples = normal(300), normal(299, 1)
    balls = Balls(real)
    far = torch.cat([samples, torch.full((1, 8), 50.0)])
    assert balls(far).coverage == balls(samples).coverage
    centre = balls(real.mean(0) + 1e-3 * normal(300, 2))
    assert centre.density > 1 > 10 * centre.coverage


def test_standard_errors_are_how_much_they_vary() -> None:
    real = Real(normal(300), Points("cpu"))
    for metric, most in ((Density(real), 1.3), (Coverage(real), 2.0)):
        sets = [Generated(0.8 * normal(200, 1 + i), bootstrap_weights(200, 50, i)) for i in range(60)]
        spread = torch.tensor([metric.measure(generated) for generated in sets]).std().item()
        error = torch.tensor([metric.error(generated) for generated in sets[:20]]).mean().item()
        assert 0.75 * spread < error < most * spread
