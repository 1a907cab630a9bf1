"""Data sets: statistics, splits, padding, and the order of batches."""

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpm_tune.data import Dataset, DigitsConfig, GaussiansConfig, MNISTConfig, to_float
from gpm_tune.data.dataset import Batches
from gpm_tune.errors import UserError

CPU = torch.device("cpu")


def test_gaussians_have_five_modes_on_a_circle_of_radius_three() -> None:
    config = GaussiansConfig(name="gaussians", samples=50_000)
    data = config.load(seed=0)
    assert data.train.shape == (50_000, 2)
    torch.testing.assert_close(config.means.norm(dim=1), torch.full((5,), 3.0))
    distances = torch.cdist(data.train, config.means)
    nearest, mode = distances.min(1)
    shares = torch.bincount(mode) / len(mode)
    assert (shares - 0.2).abs().max() < 0.02
    # The distance of a 2-D Gaussian from its mean is Rayleigh: its mean square is 2 std².
    assert math.sqrt(nearest.square().mean() / 2) == pytest.approx(0.5, rel=0.02)


def test_splits_are_independent_and_follow_the_seed() -> None:
    config = GaussiansConfig(name="gaussians", samples=1000)
    one, again, other = config.load(0), config.load(0), config.load(1)
    assert torch.equal(one.train, again.train)
    assert not torch.equal(one.train, other.train)
    assert not torch.equal(one.train, one.validation)


def as_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def check_images(data: Dataset, side: int) -> None:
    for split in (data.train, data.validation, data.test):
        assert split.shape[1:] == (1, side, side)
        assert split.dtype == torch.uint8
    images = to_float(data.validation)
    assert images.min() == -1
    assert images.max() == 1
    assert (images[:, :, 0, :] == -1).all(), "the frame is black"
    assert (images[:, :, :, -1] == -1).all(), "the frame is black"


@pytest.mark.parametrize("side", [16, 32])
def test_digits(side: int) -> None:
    data = DigitsConfig.model_validate({"name": "digits", "size": side}).load(seed=3)
    check_images(data, side)
    assert [len(data.train), len(data.validation), len(data.test)] == [1077, 360, 360]
    assert not as_set(data.train) & as_set(data.test)
    other = DigitsConfig.model_validate({"name": "digits", "size": side}).load(seed=4)
    assert torch.equal(data.test, other.test), "the test set is the same for every seed"
    assert not torch.equal(data.validation, other.validation)


@pytest.mark.skipif("GPM_TUNE_DATA" not in os.environ, reason="GPM_TUNE_DATA names no folder with MNIST")
def test_mnist() -> None:
    data = MNISTConfig(name="mnist").load(seed=0)
    check_images(data, 32)
    assert [len(data.train), len(data.validation), len(data.test)] == [54_000, 6_000, 10_000]
    assert to_float(data.train[:5000]).mean().item() == pytest.approx(-0.8, abs=0.02)


def test_mnist_that_is_nowhere_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(UserError, match=r"Put the four files .* GPM_TUNE_DATA") as error:
        MNISTConfig(name="mnist", root=tmp_path / "nothing").prepare()
    assert str(tmp_path / "nothing") in str(error.value)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 3))
def test_an_epoch_reads_every_sample_at_most_once(batch_size: int, extra: int, seed: int) -> None:
    size = batch_size + extra
    batches = Batches(size, batch_size, seed, CPU)
    read = torch.cat([batches.indices(step) for step in range(batches.per_epoch)])
    assert len(read.unique()) == len(read) == batches.per_epoch * batch_size
    assert read.max() < size


def test_the_order_is_a_pure_function_of_seed_and_step() -> None:
    one, two = Batches(100, 10, 0, CPU), Batches(100, 10, 0, CPU)
    forwards = [one.indices(step) for step in range(35)]
    backwards = [two.indices(step) for step in reversed(range(35))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not torch.equal(torch.cat(forwards[:10]), torch.cat(forwards[10:20])), "epochs differ"
