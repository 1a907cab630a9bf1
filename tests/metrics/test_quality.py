"""Quality of images and points: agreement with the metrics of training, standard errors, the cache."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpm_tune.data import DigitsConfig, GaussiansConfig, to_float
from gpm_tune.errors import DivergedError, UserError
from gpm_tune.metrics import DEFAULTS, METRICS, FeatureExtractor, Points, Quality, Real
from gpm_tune.metrics.features import SmallFeatures

IMAGE_METRICS = ["fid", "kid", "precision", "recall", "fid_infinity", "sliced_wasserstein"]
MIXTURE = GaussiansConfig(name="gaussians", samples=200)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return to_float(DigitsConfig(name="digits").load(0).train)


def of_images(
    reference: Tensor, metrics: Iterable[str] = IMAGE_METRICS, cache: Path | None = None
) -> Quality:
    return Quality(metrics, Real(reference, FeatureExtractor("small", None, "cpu"), cache=cache))


@pytest.fixture(scope="module")
def images(digits: Tensor) -> Quality:
    return of_images(digits[:500])


@pytest.fixture
def points() -> Quality:
    real = Real(MIXTURE.load(0).validation, Points("cpu"), means=MIXTURE.means, std=MIXTURE.std)
    return Quality(DEFAULTS["points"], real)


def test_a_metric_alone_is_what_it_is_among_others(digits: Tensor, images: Quality) -> None:
    samples = digits[500:900] * 0.7 - 0.3
    features = images.features(samples)
    together, errors = images.measure(features), images.errors(features, 5, 0)
    for name in IMAGE_METRICS:
        alone = of_images(digits[:500], [name])
        assert alone.measure(features) == {name: together[name]} == alone(samples)
        assert alone.errors(features, 5, 0) == {name: errors[name]}


def test_every_metric_is_worse_for_worse_images(digits: Tensor, images: Quality) -> None:
    good = images.measure(images.features(digits[500:900]))
    noise = torch.randn(400, *digits.shape[1:], generator=torch.Generator().manual_seed(0))
    bad = images.measure(images.features(digits[500:900] + 0.5 * noise))
    assert list(good) == IMAGE_METRICS
    for name in IMAGE_METRICS:
        assert bad[name] > good[name] if METRICS[name].mode == "min" else bad[name] < good[name]


def test_features_of_the_reference_are_extracted_once(
    digits: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = of_images(digits[:50], cache=tmp_path).features(digits[50:100])
    value = of_images(digits[:50]).measure(features)
    monkeypatch.setattr(SmallFeatures, "forward", _refuse)
    assert of_images(digits[:50], cache=tmp_path).measure(features) == value
    with pytest.raises(AssertionError):
        of_images(digits[:51], cache=tmp_path)


def test_fid_alone_keeps_its_gaussian_fit_alone(digits: Tensor, tmp_path: Path) -> None:
    of_images(digits[:50], ["fid"], tmp_path)
    assert [file.name.partition("-")[0] for file in tmp_path.glob("*.safetensors")] == ["fid"]


def _refuse(*_arguments: object) -> None:
    raise AssertionError("features were extracted again")


def test_features_do_not_depend_on_what_they_are_extracted_with(digits: Tensor, images: Quality) -> None:
    parts = [images.features(part) for part in digits[:90].split(40)]
    torch.testing.assert_close(torch.cat(parts), images.features(digits[:90]))
    assert parts[0].shape == (40, SmallFeatures.num_features)


def check_errors(quality: Quality, draw: Callable[[int], Tensor], low: float, high: float) -> None:
    """That standard errors are, between these factors, how much values differ between sets."""
    sets = [draw(seed) for seed in range(40)]
    values = [quality.measure(x) for x in sets]
    errors = [quality.errors(x, 20, 0) for x in sets[:8]]
    assert list(errors[0]) == list(quality.metrics)
    for name in quality.metrics:
        spread = torch.tensor([value[name] for value in values]).std().item()
        error = math.fsum(error[name] for error in errors) / len(errors)
        assert low * spread <= error <= high * spread, name


def test_errors_of_images_are_how_much_values_vary(images: Quality, digits: Tensor) -> None:
    """Features drawn from a Gaussian with another mean than the reference's, and narrower."""
    real = images.features(digits[:500])
    mean, deviations = real.mean(0), real - real.mean(0)

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return 1.2 * mean + 0.8 * torch.randn(150, 500, generator=rng) @ deviations / math.sqrt(499)

    check_errors(images, draw, 0.7, 1.6)


def test_errors_of_points_are_how_much_values_vary(points: Quality) -> None:
    """Two modes of five have half their share or less, each in some sets only."""

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        mode = torch.multinomial(torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1]), 200, True, generator=rng)
        return MIXTURE.means[mode] + MIXTURE.std * torch.randn(200, 2, generator=rng)

    check_errors(points, draw, 0.6, 1.5)


def test_errors_are_a_function_of_the_seed(images: Quality, digits: Tensor, points: Quality) -> None:
    for quality, samples in ((images, digits[500:600]), (points, MIXTURE.load(1).train)):
        features = quality.features(samples)
        first = quality.errors(features, 5, 1)
        assert quality.errors(features, 5, 1) == first
        assert quality.errors(features, 5, 2) != first


def test_too_few_samples_and_resamples_are_refused(images: Quality, digits: Tensor) -> None:
    with pytest.raises(UserError, match="generated set has 9 samples: precision needs at least 10"):
        images.measure(images.features(digits[:9]))
    with pytest.raises(UserError, match="the reference has 9 samples: precision needs"):
        of_images(digits[:9])
    with pytest.raises(UserError, match="at least 2 resamples, not 1"):
        images.errors(images.features(digits[:10]), 1, 0)


def test_the_fewest_samples_can_be_measured(images: Quality, digits: Tensor) -> None:
    features = images.features(digits[:10])
    for values in (images.measure(features), images.errors(features, 2, 0)):
        assert all(math.isfinite(value) for value in values.values())


def test_non_finite_samples_are_a_divergence(images: Quality, digits: Tensor, points: Quality) -> None:
    for quality, samples in ((images, digits[:10].clone()), (points, torch.zeros(10, 2))):
        samples[3] = math.nan
        with pytest.raises(DivergedError):
            quality.features(samples)
