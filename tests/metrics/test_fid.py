"""FID: laws, the cache of the real statistics, and the feature networks."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from gpm_tune.data import DigitsConfig, MNISTConfig, to_float
from gpm_tune.errors import DivergedError, UserError
from gpm_tune.metrics import Quality, Real, check_features
from gpm_tune.metrics.features import (
    SMALL_WEIGHTS,
    FeatureExtractor,
    SmallFeatures,
    inception_features,
    small_features,
)

HAS_MNIST = "GPM_TUNE_DATA" in os.environ


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return to_float(DigitsConfig(name="digits").load(0).train)


def fid_from(reference: Tensor, cache: Path | None = None) -> Quality:
    return Quality(["fid"], Real(reference, FeatureExtractor("small", None, "cpu"), cache=cache))


def fid(reference: Tensor, samples: Tensor, cache: Path | None = None) -> float:
    return fid_from(reference, cache)(samples)["fid"]


def test_a_set_has_no_distance_from_itself(digits: Tensor) -> None:
    assert fid(digits, digits) == pytest.approx(0, abs=0.01)


def test_fid_is_the_frechet_distance_of_the_features(digits: Tensor) -> None:
    """Against the textbook formula, with a symmetric matrix square root."""
    halves = digits[:500], digits[500:1000] * 0.7 - 0.3
    features = [small_features()(half / 2 + 0.5).double() for half in halves]
    means = [f.mean(0) for f in features]
    one, two = (torch.cov(f.T) for f in features)
    values, vectors = torch.linalg.eigh(one)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    expected = (means[0] - means[1]).square().sum() + one.trace() + two.trace() - 2 * cross
    assert fid(*halves) == pytest.approx(expected.item(), rel=1e-3)


def test_fid_is_that_of_torchmetrics(digits: Tensor) -> None:
    """Of fewer samples than features too, where covariances are singular."""
    for count in (60, 500):
        reference, samples = digits[:count], digits[count : 2 * count] * 0.7 - 0.3
        theirs = FrechetInceptionDistance(small_features(), normalize=False)
        for images, real in ((reference, True), (samples, False)):
            theirs.update(images / 2 + 0.5, real=real)
        assert fid(reference, samples) == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_fid_grows_with_noise(digits: Tensor) -> None:
    noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    values = [fid(digits, digits + level * noise) for level in (0.0, 0.1, 0.3, 1.0)]
    assert values == sorted(values)
    assert values[-1] > 10 * values[1] > 0


def test_cached_statistics_replace_the_reference(
    digits: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = digits[:100]
    value = fid(digits, samples, tmp_path)
    rows: list[int] = []
    forward = SmallFeatures.forward

    def counting(self: SmallFeatures, x: Tensor) -> Tensor:
        rows.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(SmallFeatures, "forward", counting)
    assert fid(digits, samples, tmp_path) == value
    assert sum(rows) == len(samples)


def test_the_cache_goes_by_content(digits: Tensor, tmp_path: Path) -> None:
    fid(digits, digits[:10], tmp_path)
    fid(digits[:-1], digits[:10], tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@given(st.floats(2**-16, 2**-10))
def test_images_that_differ_by_less_than_a_byte_have_files_of_their_own(little: float) -> None:
    """The small network sees the difference."""
    images = torch.zeros(3, 1, 8, 8)
    small = FeatureExtractor("small", None, "cpu")
    names = {small.key(images + shift) for shift in (0.0, little)}
    assert len(names) == 2
    assert not torch.equal(small(images), small(images + little))
    assert small.key(images.clone()) in names


def test_a_damaged_cache_is_made_anew(digits: Tensor, tmp_path: Path) -> None:
    value = fid(digits, digits[:100], tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    for content in (b"", file.read_bytes()[:1000], b"\0" * 100):
        file.write_bytes(content)
        assert fid(digits, digits[:100], tmp_path) == value
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_evaluating_again_gives_the_same_value(digits: Tensor) -> None:
    metrics = fid_from(digits)
    first = metrics(digits[:200])
    metrics(digits[200:300])
    assert metrics(digits[:200]) == first


def test_non_finite_samples_are_a_divergence(digits: Tensor) -> None:
    broken = digits[:10].clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(DivergedError):
        fid_from(digits)(broken)


def test_the_small_network_takes_any_size_and_colour() -> None:
    network = small_features()
    grey = torch.rand(4, 1, 16, 16)
    assert network(grey).shape == (4, SmallFeatures.num_features)
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, SmallFeatures.num_features)


def test_the_small_network_is_small_and_its_record_is_true() -> None:
    record = json.loads(SMALL_WEIGHTS.with_suffix(".json").read_text())
    assert SMALL_WEIGHTS.stat().st_size < 1_000_000
    assert record["parameters"] == sum(p.numel() for p in SmallFeatures().parameters())


@pytest.mark.skipif(not HAS_MNIST, reason="GPM_TUNE_DATA names no folder with MNIST")
def test_the_small_network_has_the_recorded_accuracy() -> None:
    from gpm_tune.metrics.train_small_features import accuracy, images

    recorded = json.loads(SMALL_WEIGHTS.with_suffix(".json").read_text())["mnist_test_accuracy"]
    assert recorded > 0.98
    measured = accuracy(small_features(), *images(os.environ["GPM_TUNE_DATA"], train=False))
    assert measured == pytest.approx(recorded, abs=5e-4)


@pytest.mark.skipif(not HAS_MNIST, reason="GPM_TUNE_DATA names no folder with MNIST")
def test_fid_tells_mnists_own_test_images_from_worse_ones() -> None:
    data = MNISTConfig(name="mnist").load(0)
    reference, test = to_float(data.validation[:2000]), to_float(data.test[:2000])
    metrics = fid_from(reference)
    blurred = torch.nn.functional.avg_pool2d(test, 5, stride=1, padding=2)
    assert 5 * metrics(test)["fid"] < metrics(blurred)["fid"]


@pytest.mark.slow
def test_inception_from_a_local_file(tmp_path: Path) -> None:
    """The standard network's path, with random weights in the file that a user would give."""
    weights = tmp_path / "weights.pth"
    torch.save({}, weights)
    with pytest.MonkeyPatch.context() as patch:  # an untrained network, whatever the file holds
        patch.setattr("torch_fidelity.feature_extractor_base.FeatureExtractorBase.load_state_dict", _ignore)
        network = inception_features(weights)
    for parameter in network.parameters():
        if parameter.dim() == 4:  # at its own initialisation the signal would fade on the way
            torch.nn.init.kaiming_normal_(parameter, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), weights)
    for channels in (1, 3):
        images = torch.rand(12, channels, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        extract = FeatureExtractor("inception", weights, "cpu")
        metrics = Quality(["fid"], Real(images, extract, cache=tmp_path / "cache"))
        assert metrics(images)["fid"] == pytest.approx(0, abs=0.1)
        assert metrics(images * 0.1)["fid"] > 0.2
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def _ignore(*_arguments: object) -> None:
    pass


def damaged_weights() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    """What is wrong, how it is written, and what is said."""
    unreadable = "no weights can be read from .*: it is damaged, or another file"
    yield "a function", lambda file: torch.save({"code": print}, file), unreadable
    yield "HTML", lambda file: file.write_text("<!DOCTYPE html>\n<title>404</title>"), unreadable
    yield "empty", lambda file: file.touch(), unreadable
    yield "no tensors", lambda file: torch.save([1, 2], file), "has other weights than Inception's"
    yield "others", lambda file: torch.save({"\x1b[31mx": torch.ones(3)}, file), "has other weights than"


@pytest.mark.parametrize(
    ("write", "said"), [pytest.param(*case[1:], id=case[0]) for case in damaged_weights()]
)
def test_damaged_inception_weights_are_refused_in_a_sentence(
    tmp_path: Path, write: Callable[[Path], object], said: str
) -> None:
    write(tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=said) as error:
        check_features("inception", tmp_path / "wrong.pth")
    said, advice = str(error.value).split("\nhelp: ")
    assert said.isprintable()
    assert str(tmp_path / "wrong.pth") in said
    assert "evaluation.inception_weights" in advice


def test_missing_inception_weights_are_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"is not a file\nhelp: .*choose evaluation.features: small"):
        check_features("inception", tmp_path / "nothing.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", _no_network)
    with pytest.raises(UserError, match=r"could not be downloaded: no route\nhelp: give "):
        check_features("inception", None)


def _no_network(*_arguments: object, **_options: object) -> None:
    raise OSError("no route")
