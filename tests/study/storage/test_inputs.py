"""What nodes take from the storage: of a data set of many files a few, put there once, and the same data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from examples import IMAGES, MODELS, POINTS, TEACHER, experiment_of
from filelock import FileLock
from PIL import Image
from program import Started

from gpm_tune import locations, patience
from gpm_tune.config import Config
from gpm_tune.data import CelebAConfig, MNISTConfig
from gpm_tune.data.fingerprint import fingerprint
from gpm_tune.errors import UserError
from gpm_tune.metrics.features import inception_file
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import check_data_here, prepare, prepare_data, share_inputs, to_share
from gpm_tune.training import Experiment, Trainer

COUNT = 30
PLAIN = space.put(POINTS, {**IMAGES, "evaluation.samples": 2})
FEW = {"training.batch_size": 4}
# A process of a node: its data folder is in the environment, the experiment comes as JSON.
NODE = """
import json, sys
from gpm_tune.data.fingerprint import fingerprint
from gpm_tune.study.storage.inputs import prepare_data
from gpm_tune.training import Experiment

experiment = Experiment.model_validate(json.loads(sys.argv[1]))
print("begun")
prepare_data(experiment, sys.argv[2])
print(fingerprint(experiment.data), experiment.data.validation_samples)
"""


def write_pictures(folder: Path, shift: int = 0) -> None:
    for number in range(COUNT):
        place = folder / ("a" if number % 2 else "a/b")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 8 * number + shift).save(place / f"{number}.png")


def write_celeba(root: Path) -> None:
    images = root / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    for number in range(COUNT):
        Image.new("RGB", (178, 218), (8 * number, 0, 99)).save(images / f"{number:06d}.jpg")
    rows = [f"{number:06d}.jpg {0 if number < 20 else 1 + number % 2}" for number in range(COUNT)]
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")


def experiment_on(data: dict[str, Any]) -> Experiment:
    return Experiment.model_validate(space.put(PLAIN, {"data": data, **FEW}))


def start_node(folder: Path, experiment: Experiment, storage: str) -> Started:
    """A process of a machine whose data folder is this one."""
    text = json.dumps(experiment.model_dump(mode="json"))
    process = Started(text, storage, code=NODE, GPM_TUNE_DATA=str(folder))
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.fixture(autouse=True)
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of this process."""
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "driver"))
    return tmp_path / "driver"


@pytest.fixture(params=["folder", "celeba"])
def experiment(request: pytest.FixtureRequest, tmp_path: Path, driver: Path) -> Experiment:
    """On a data set of many files that is here."""
    if request.param == "celeba":
        write_celeba(driver)
        return experiment_on({"name": "celeba"})
    write_pictures(tmp_path / "pictures")
    return experiment_on({"name": "folder", "root": str(tmp_path / "pictures"), "size": 16})


def hide_originals(tmp_path: Path, driver: Path) -> None:
    """As on a machine that never had them."""
    shutil.rmtree(tmp_path / "pictures", ignore_errors=True)
    shutil.rmtree(driver)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_few_files_travel_and_are_the_same_data_on_every_node(
    experiment: Experiment, tmp_path: Path, driver: Path
) -> None:
    storage = tmp_path / "storage"
    share_inputs(experiment, str(storage))
    stored = files_below(storage)
    assert len(stored) == (3 if experiment.data.name == "celeba" else 2), stored
    expected = f"{fingerprint(experiment.data)} {experiment.data.validation_samples}"
    hide_originals(tmp_path, driver)
    node = tmp_path / "node"
    processes = [start_node(node, experiment, str(storage)) for _ in range(4)]
    assert [process.communicate(timeout=120)[0].split("\n")[0] for process in processes] == [expected] * 4
    assert files_below(node) == [name for name in stored if name != "current"]


def test_what_the_storage_has_is_not_sent_again_whoever_has_the_data(
    experiment: Experiment, tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = str(tmp_path / "storage")
    share_inputs(experiment, storage)
    (mark,) = (tmp_path / "storage").rglob("current")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "storage").rglob("*")}
    for file in [*(tmp_path / "pictures").rglob("*.png"), *driver.rglob("*.jpg")]:
        os.utime(file, (1, 1))  # as on another machine, to which the same files were copied
    for array in driver.rglob("*.npy"):
        array.unlink()
    monkeypatch.setattr("gpm_tune.data.fingerprint._known", {})
    share_inputs(experiment, storage)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "storage").rglob("*")} == before
    assert mark.read_text() == fingerprint(experiment.data)


def test_a_node_follows_when_the_data_change(tmp_path: Path) -> None:
    pictures, storage, node = tmp_path / "pictures", str(tmp_path / "storage"), tmp_path / "node"
    experiment = experiment_on({"name": "folder", "root": str(pictures), "size": 16})
    found = []
    for shift in (0, 5, 0):
        write_pictures(pictures, shift)
        share_inputs(experiment, storage)
        expected = fingerprint(experiment.data)
        pictures.rename(tmp_path / "hidden")
        said = start_node(node, experiment, storage).communicate(timeout=60)[0]
        (tmp_path / "hidden").rename(pictures)
        assert said.split()[0] == expected
        assert len(list(node.rglob("*.npy"))) == 1, "the version before is deleted"
        found.append(expected)
    assert found[0] == found[2] != found[1]


def test_forms_and_folders_of_one_name_do_not_meet(tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    experiments = []
    for parent, shift in (("one", 0), ("two", 5)):
        write_pictures(tmp_path / parent / "pictures", shift)
        root = str(tmp_path / parent / "pictures")
        experiments += [experiment_on({"name": "folder", "root": root, "size": size}) for size in (16, 32)]
    for experiment in experiments:
        share_inputs(experiment, storage)
    expected = [fingerprint(experiment.data) for experiment in experiments]
    assert len(set(expected)) == 4
    for parent in ("one", "two"):
        shutil.rmtree(tmp_path / parent)
    for experiment, found in zip(experiments, expected, strict=True):
        said = start_node(tmp_path / "node", experiment, storage).communicate(timeout=60)[0]
        assert said.split()[0] == found


def test_what_was_not_sent_to_its_end_is_not_taken(
    experiment: Experiment, tmp_path: Path, driver: Path
) -> None:
    storage = tmp_path / "storage"
    sent = to_share(experiment, lambda _name: None)
    file, place = next(sent)
    locations.send(file, f"{storage}/data/packed/{place}")
    sent.close()
    hide_originals(tmp_path, driver)
    with pytest.raises(UserError, match=r"is not in|cannot be read as a folder"):
        prepare_data(experiment, str(storage))
    assert not list(driver.rglob("*.npy"))


@pytest.mark.parametrize("mark", ["", "../../etc", "0123456789abcde/", "\n", "0123456789abcdef"])
def test_a_mark_that_names_no_version_is_passed_over(tmp_path: Path, mark: str) -> None:
    experiment = experiment_on({"name": "celeba"})
    locations.write(f"{tmp_path}/storage/data/packed/celeba-64/current", mark.encode())
    with pytest.raises(UserError, match="CelebA is not in"):
        prepare_data(experiment, f"{tmp_path}/storage")


def test_one_process_of_a_node_copies_and_the_others_wait(
    experiment: Experiment, tmp_path: Path, driver: Path
) -> None:
    storage, node = tmp_path / "storage", tmp_path / "node"
    share_inputs(experiment, str(storage))
    found = fingerprint(experiment.data)
    (array,) = storage.rglob("*.npy")
    hide_originals(tmp_path, driver)
    place = node / "packed" / array.parent.parent.name
    place.mkdir(parents=True)
    with FileLock(f"{place / found}.lock"):
        process = start_node(node, experiment, str(storage))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        shutil.copytree(array.parent, place / found)
        shutil.rmtree(storage / "data" / "packed" / place.name / found)  # nothing is left to be copied
    assert process.communicate(timeout=60)[0].split()[0] == found


def test_a_teachers_data_are_shared_too(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    on_pictures = experiment_on({"name": "folder", "root": str(tmp_path / "pictures"), "size": 16})
    assert list(to_share(experiment_of(), lambda _name: None)) == [], "points are drawn, not read"
    places = [place for _, place in to_share(on_pictures, lambda _name: None)]
    assert places[-1].endswith("/current")


def test_a_storage_that_cannot_be_written_is_said(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the data cannot be copied to .*\nhelp: "):
        share_inputs(experiment, str(tmp_path / "file"))


@pytest.mark.slow
def test_a_bucket_serves_as_well(experiment: Experiment, tmp_path: Path, driver: Path, bucket: str) -> None:
    share_inputs(experiment, bucket)
    found = fingerprint(experiment.data)
    hide_originals(tmp_path, driver)
    said = start_node(tmp_path / "node", experiment, bucket).communicate(timeout=60)[0]
    assert said.split()[0] == found


def test_weights_go_to_the_storage_and_from_there_to_nodes(
    tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_celeba(driver)
    storage = str(tmp_path / "storage")
    changes = {"data": {"name": "celeba"}, **FEW, "evaluation.features": "inception"}
    experiment = Experiment.model_validate(space.put(PLAIN, changes))
    weights = inception_file(None)
    locations.write(str(weights), b"weights")
    share_inputs(experiment, storage)
    (stored,) = (tmp_path / "storage" / "weights").iterdir()
    assert (stored.name, stored.read_bytes()) == (weights.name, b"weights")
    hide_originals(tmp_path, driver)
    prepare_data(experiment, storage)
    assert weights.read_bytes() == b"weights"

    named = tmp_path / "elsewhere" / "mine.pth"
    experiment = Experiment.model_validate(
        space.put(PLAIN, {**changes, "evaluation.inception_weights": str(named)})
    )
    locations.write(f"{storage}/weights/mine.pth", b"mine")  # as a person puts it there
    prepare_data(experiment, storage)
    assert named.read_bytes() == b"mine"


def test_a_teachers_damaged_weights_are_refused_before_work_starts(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    trainer = Trainer(Experiment.model_validate(TEACHER))
    trainer.run_interval()
    trainer.save(folder)
    experiment = experiment_of(model={**MODELS["score_gan"], "teacher": {"checkpoint": str(folder)}})
    prepare(experiment, Home(tmp_path / "home"))
    content = (folder / "weights.safetensors").read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"<html>", b""):
        (folder / "weights.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="the checkpoint is damaged") as error:
            prepare(experiment, Home(tmp_path / "home"))
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "home").exists()


def test_a_dry_run_finds_unreadable_pictures_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "cache"))
    write_pictures(tmp_path / "pictures")
    tree = space.put(
        PLAIN, {"data": {"name": "folder", "root": str(tmp_path / "pictures"), "size": 16}} | FEW
    )
    check_data_here(Experiment.model_validate(tree))
    inception = {
        "evaluation.features": "inception",
        "evaluation.inception_weights": str(tmp_path / "pictures"),
    }
    with pytest.raises(UserError, match="is not a file"):
        check_data_here(Experiment.model_validate(space.put(tree, inception)))
    (tmp_path / "pictures" / "bad.png").touch()
    with pytest.raises(UserError, match="1 of 31 pictures cannot be read"):
        check_data_here(Experiment.model_validate(tree))


class Fetched(Config):
    """A plug-in's data set that downloads, and does not say whether it has."""

    name: Literal["fetched"] = "fetched"
    shape: ClassVar[tuple[int, ...]] = (2,)
    validation_samples: ClassVar[int] = 10

    def prepare(self) -> None:
        raise UserError("it was downloaded")


@pytest.mark.parametrize("name", ["mnist", "celeba", "fetched"])
def test_a_dry_run_fetches_no_data(name: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"  # as a download leaves it that failed
    raw.mkdir(parents=True)
    (tmp_path / "celeba").mkdir()
    data = {
        "mnist": MNISTConfig(name="mnist", root=tmp_path),
        "celeba": CelebAConfig(name="celeba", root=tmp_path),
        "fetched": Fetched(),
    }[name]
    check_data_here(experiment_of().model_copy(update={"data": data}))
    assert not list(raw.iterdir())


@pytest.mark.parametrize("data", [POINTS["data"], {"name": "digits"}], ids=lambda data: data["name"])
def test_a_dry_run_counts_the_samples_of_data_that_need_no_files(data: dict[str, Any]) -> None:
    images = IMAGES if data["name"] == "digits" else {}
    tree = space.put(POINTS, {**images, "data": data, "training.batch_size": 10**6})
    with pytest.raises(UserError, match=r"training.batch_size is 1000000"):
        check_data_here(Experiment.model_validate(tree))
