"""Quality of images and points: agreement with the metrics of training, standard errors, the cache."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpm_tune.data import DigitsConfig, GaussiansConfig, to_float
from gpm_tune.errors import DivergedError, UserError
from gpm_tune.metrics import ImageMetrics, ImageQuality, PointMetrics, PointQuality, Quality
from gpm_tune.metrics.features import SmallFeatures

MIXTURE = GaussiansConfig(name="gaussians", samples=200)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return to_float(DigitsConfig(name="digits").load(0).train)


@pytest.fixture(scope="module")
def images(digits: Tensor) -> ImageQuality:
    return ImageQuality(digits[:500], "small")


@pytest.fixture
def points() -> PointQuality:
    return PointQuality(MIXTURE.load(0).validation, MIXTURE.means, MIXTURE.std)


def test_fid_is_that_of_training(digits: Tensor, images: ImageQuality) -> None:
    samples = digits[500:900] * 0.7 - 0.3
    expected = ImageMetrics(digits[:500], "small")(samples)["fid"]
    assert images.measure(images.features(samples))["fid"] == pytest.approx(expected, rel=1e-5)


def test_distances_of_points_are_those_of_training(points: PointQuality) -> None:
    samples = MIXTURE.load(1).train
    expected = PointMetrics(MIXTURE.load(0).validation, MIXTURE.means, MIXTURE.std)(samples)
    assert points.measure(points.features(samples)) == expected


def test_every_metric_is_worse_for_worse_images(digits: Tensor, images: ImageQuality) -> None:
    good = images.measure(images.features(digits[500:900]))
    noise = torch.randn(400, *digits.shape[1:], generator=torch.Generator().manual_seed(0))
    bad = images.measure(images.features(digits[500:900] + 0.5 * noise))
    assert list(good) == list(ImageQuality.modes)
    for name, better in ImageQuality.modes.items():
        assert bad[name] > good[name] if better == "min" else bad[name] < good[name]


def test_features_of_the_reference_are_extracted_once(
    digits: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = ImageQuality(digits[:50], "small", cache=tmp_path).features(digits[50:100])
    value = ImageQuality(digits[:50], "small").measure(features)
    monkeypatch.setattr(SmallFeatures, "forward", _refuse)
    assert ImageQuality(digits[:50], "small", cache=tmp_path).measure(features) == value
    with pytest.raises(AssertionError):
        ImageQuality(digits[:51], "small", cache=tmp_path)


def _refuse(*_arguments: object) -> None:
    raise AssertionError("features were extracted again")


def test_features_do_not_depend_on_what_they_are_extracted_with(digits: Tensor, images: ImageQuality) -> None:
    parts = [images.features(part) for part in digits[:90].split(40)]
    torch.testing.assert_close(torch.cat(parts), images.features(digits[:90]))
    assert parts[0].shape == (40, SmallFeatures.num_features)


def check_errors(quality: Quality, draw: Callable[[int], Tensor], low: float, high: float) -> None:
    """That standard errors are, between these factors, how much values differ between sets."""
    sets = [draw(seed) for seed in range(40)]
    values = [quality.measure(x) for x in sets]
    errors = [quality.errors(x, 20, 0) for x in sets[:8]]
    assert list(errors[0]) == list(quality.modes)
    for name in quality.modes:
        spread = torch.tensor([value[name] for value in values]).std().item()
        error = math.fsum(error[name] for error in errors) / len(errors)
        assert low * spread <= error <= high * spread, name


def test_errors_of_images_are_how_much_values_vary(images: ImageQuality, digits: Tensor) -> None:
    """Features drawn from a Gaussian with another mean than the reference's, and narrower."""
    real = images.features(digits[:500])
    mean, deviations = real.mean(0), real - real.mean(0)

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return 1.2 * mean + 0.8 * torch.randn(150, 500, generator=rng) @ deviations / math.sqrt(499)

    check_errors(images, draw, 0.7, 1.6)


def test_errors_of_points_are_how_much_values_vary(points: PointQuality) -> None:
    """Two modes of five have half their share or less, each in some sets only."""

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        mode = torch.multinomial(torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1]), 200, True, generator=rng)
        return MIXTURE.means[mode] + MIXTURE.std * torch.randn(200, 2, generator=rng)

    check_errors(points, draw, 0.6, 1.5)


def test_errors_are_a_function_of_the_seed(
    images: ImageQuality, digits: Tensor, points: PointQuality
) -> None:
    for quality, samples in ((images, digits[500:600]), (points, MIXTURE.load(1).train)):
        features = quality.features(samples)
        first = quality.errors(features, 5, 1)
        assert quality.errors(features, 5, 1) == first
        assert quality.errors(features, 5, 2) != first


def test_too_few_samples_and_resamples_are_refused(images: ImageQuality, digits: Tensor) -> None:
    with pytest.raises(UserError, match="generated set has 9 images: quality needs at least 10"):
        images.measure(images.features(digits[:9]))
    with pytest.raises(UserError, match="the reference has 9 images"):
        ImageQuality(digits[:9], "small")
    with pytest.raises(UserError, match="at least 2 resamples, not 1"):
        images.errors(images.features(digits[:10]), 1, 0)


def test_the_fewest_samples_can_be_measured(images: ImageQuality, digits: Tensor) -> None:
    features = images.features(digits[:10])
    for values in (images.measure(features), images.errors(features, 2, 0)):
        assert all(math.isfinite(value) for value in values.values())


def test_non_finite_samples_are_a_divergence(
    images: ImageQuality, digits: Tensor, points: PointQuality
) -> None:
    for quality, samples in ((images, digits[:10].clone()), (points, torch.zeros(10, 2))):
        samples[3] = math.nan
        with pytest.raises(DivergedError):
            quality.features(samples)
