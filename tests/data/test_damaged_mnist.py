"""MNIST's files as downloads and people leave them: what is damaged or exchanged is refused in a sentence."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from contents import write_mnist
from examples import IMAGES, POINTS
from program import gpm_tune, write_study

from gpm_tune.data import MNISTConfig
from gpm_tune.errors import UserError
from gpm_tune.study.definition import space
from gpm_tune.study.storage.inputs import check_data_here
from gpm_tune.training import Experiment

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
LABELS, TEST_LABELS = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"


def exchange(one: str, other: str) -> Callable[[Path], object]:
    def act(raw: Path) -> None:
        (raw / one).rename(raw / "aside")
        (raw / other).rename(raw / one)
        (raw / "aside").rename(raw / other)

    return act


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda raw: (raw / name).write_bytes(change((raw / name).read_bytes()))


def put_pipe(raw: Path) -> None:
    (raw / TRAIN).unlink()
    os.mkfifo(raw / TRAIN)


def exchange_sets(raw: Path) -> None:
    exchange(TRAIN, TEST)(raw)
    exchange(LABELS, TEST_LABELS)(raw)


DAMAGES = {
    "truncated": rewrite(TRAIN, lambda content: content[:-1]),
    "truncated in its header": rewrite(TEST, lambda content: content[:9]),
    "longer": rewrite(TEST, lambda content: content + b"\n"),
    "empty": rewrite(TRAIN, lambda _: b""),
    "HTML": rewrite(TRAIN, lambda _: b"<!DOCTYPE html><title>404</title>"),
    "labels of HTML": rewrite(LABELS, lambda _: b"<!DOCTYPE html><title>404</title>"),
    "compressed": rewrite(TRAIN, gzip.compress),
    "images and labels exchanged": exchange(TRAIN, LABELS),
    "training and tests exchanged": exchange_sets,
    "images of one with labels of the other": exchange(LABELS, TEST_LABELS),
    "a pipe": put_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    config = write_mnist(tmp_path, 1)
    assert len(config.load(0).train) == 108
    DAMAGES[damage](tmp_path / "MNIST" / "raw")
    for use in (config.prepare, lambda: config.load(0), lambda: check_data_here(experiment(config))):
        with pytest.raises(
            UserError, match=r"the data set mnist is damaged \(.*\)\nhelp: delete it"
        ) as error:
            use()
        assert str(tmp_path / "MNIST" / "raw") in str(error.value)


def experiment(config: MNISTConfig) -> Experiment:
    return Experiment.model_validate(space.put(POINTS, {**IMAGES, "data": config.model_dump(mode="json")}))


def test_the_program_refuses_before_it_begins(tmp_path: Path) -> None:
    config = write_mnist(tmp_path, 1)
    DAMAGES["HTML"](tmp_path / "MNIST" / "raw")
    tree = experiment(config).model_dump(mode="json")
    study = write_study(tmp_path, experiment=tree, search={"model.eta": {"float": [1.0, 20.0]}})
    result = gpm_tune("run", study, "--dry-run", home=tmp_path / "home")
    assert result.returncode == 2, result.stderr
    assert "the data set mnist is damaged" in result.stderr
    assert result.stderr.splitlines()[1:] == ["help: delete it, and it is fetched again"]
