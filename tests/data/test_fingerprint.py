"""A fingerprint tells the samples of a data set from others, whatever their files look like from outside."""

import shutil
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from contents import Write, replace_unnoticed, write_celeba, write_mnist, write_pictures
from examples import MODELS, TEACHER, experiment_of
from pydantic import Field

from gpm_tune.config import Config
from gpm_tune.data import CelebAConfig, Dataset, DigitsConfig, FolderConfig, GaussiansConfig, MNISTConfig
from gpm_tune.data.fingerprint import fingerprint, read
from gpm_tune.errors import UserError

WRITERS = [write_pictures, write_mnist, write_celeba]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "cache"))


@pytest.mark.parametrize("write", WRITERS)
def test_what_replaces_the_files_under_their_names_and_times_is_noticed(tmp_path: Path, write: Write) -> None:
    config: FolderConfig | MNISTConfig | CelebAConfig = write(tmp_path, 1)  # type: ignore[assignment]
    before, data = fingerprint(config), config.load(seed=3)
    train = data.train.clone()
    assert fingerprint(config) == read(config, seed=3)[1] == before
    replace_unnoticed(tmp_path, write, 2)
    assert fingerprint(config) != before
    assert not torch.equal(config.load(seed=3).train, train), "what was decoded is not taken again"
    write(tmp_path, 1)
    assert fingerprint(config) == before, "the content counts, not when it was written"


@pytest.mark.parametrize("write", WRITERS)
def test_it_is_the_same_elsewhere_and_through_links(tmp_path: Path, write: Write) -> None:
    config: FolderConfig | MNISTConfig | CelebAConfig = write(tmp_path / "one", 1)  # type: ignore[assignment]
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("*.npy"))
    (tmp_path / "three").symlink_to(tmp_path / "two")
    found = set()
    for place in ("one", "two", "three"):
        root = Path(str(config.root).replace("one", place))
        found.add(fingerprint(config.model_copy(update={"root": root})))
    assert len(found) == 1


def test_files_behind_links_are_looked_at(tmp_path: Path) -> None:
    config = write_mnist(tmp_path, 1)
    (tmp_path / "MNIST" / "raw").rename(tmp_path / "elsewhere")
    (tmp_path / "MNIST" / "raw").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "MNIST")
    before = fingerprint(config)
    write_mnist(tmp_path, 2)
    assert fingerprint(config) != before


def test_a_renamed_picture_is_another_data_set(tmp_path: Path) -> None:
    config = write_pictures(tmp_path, 1)
    before = fingerprint(config)
    for number in range(10):  # which pictures are for tests follows their names
        (config.root / f"{number}.bmp").rename(config.root / f"other_{number}.bmp")
    assert fingerprint(config) != before


def test_it_is_the_datas_whatever_else_the_experiment_is() -> None:
    one = experiment_of().fingerprints
    assert (
        experiment_of(training__steps=5, seed=4).fingerprints
        == one
        == {"data": fingerprint(experiment_of().data)}
    )
    assert experiment_of(data__samples=1999).fingerprints != one
    assert fingerprint(DigitsConfig(name="digits")) != fingerprint(DigitsConfig(name="digits", size=32))


def test_a_teachers_data_count_where_they_are_others() -> None:
    score_gan = experiment_of(model=MODELS["score_gan"])
    assert score_gan.fingerprints.keys() == {"data"}
    teacher = {**TEACHER, "data": {"name": "gaussians", "samples": 3000}}
    model = {**MODELS["score_gan"], "teacher": {"experiment": teacher}}
    found = experiment_of(model=model).fingerprints
    assert found["teacher"] == fingerprint(GaussiansConfig(name="gaussians", samples=3000)) != found["data"]


class Drawn(Config):
    """As of a plug-in: without files, with a list among its keys."""

    shape: ClassVar[tuple[int, ...]] = (2,)
    name: Literal["drawn"] = "drawn"
    centres: list[float] = Field([0.0, 1.0])

    def load(self, seed: int) -> Dataset:
        rng = torch.Generator().manual_seed(seed)
        return Dataset(*(torch.randn(50, 2, generator=rng) + self.centres[-1] for _ in range(3)))


class Named(Drawn):
    def fingerprint(self) -> str:
        return "its own"


def test_plug_ins_need_nothing_and_may_have_their_own() -> None:
    found = fingerprint(Drawn())  # type: ignore[arg-type]
    assert len(found) == 16
    assert read(Drawn(), seed=5)[1] == found  # type: ignore[arg-type]
    assert fingerprint(Drawn(centres=[2.0])) != found  # type: ignore[arg-type]
    assert fingerprint(Named()) == read(Named(), seed=5)[1] == "its own"  # type: ignore[arg-type]


class Restless(Drawn):
    """Its files change whenever they are read."""

    files: Path

    def load(self, seed: int) -> Dataset:
        (self.files / str(len(list(self.files.iterdir())))).touch()
        return super().load(seed)


def test_data_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the data under {tmp_path} change while they are read"):
        read(Restless(files=tmp_path), seed=0)  # type: ignore[arg-type]
