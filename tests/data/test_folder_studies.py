"""A folder of pictures in the program, from the study to the report."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from examples import IMAGES, POINTS
from PIL import Image
from program import gpm_tune, write_study

from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of pictures, in a path relative to it, with all that the program writes beside it."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for number in range(100):
        place = folder / "flowers" / str(number % 3)
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.jpg")
    changes = {
        **IMAGES,
        "data": {"name": "folder", "root": "flowers", "size": 16},
        "evaluation.samples": None,
    }
    write_study(
        folder,
        name="flowers",
        experiment=space.put(POINTS, changes),
        search={"model.eta": {"float": [1.0, 4.0]}},
        budget={"trials": 2},
        resources={"cpu": 1, "concurrent": 1},
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def _cache(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPM_TUNE_DATA", str(folder / "cache"))
        yield


@pytest.mark.slow
def test_a_study_of_pictures_from_its_run_to_its_report(folder: Path) -> None:
    home = folder / "home"
    done = gpm_tune("run", folder / "study.yaml", home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "study flowers: 2 complete" in done.stdout
    assert len(list((folder / "cache" / "folders").rglob("*.npy"))) == 1
    assert {path.suffix for path in (folder / "flowers").rglob("*") if path.is_file()} == {".jpg"}

    best = read_study(Home(home).optuna_uri, "flowers").ranked()[0]
    run = home / "runs" / str(best.run)
    measured = gpm_tune("evaluate", run, "--nfe", "1", "--resamples", "0", home=home)
    assert "10 samples, validation set" in measured.stdout, measured.stderr
    sampled = gpm_tune("sample", run, "--n", "2", "-o", folder / "x.npz")
    assert sampled.returncode == 0, sampled.stderr
    assert np.load(folder / "x.npz")["samples"].shape == (2, 3, 16, 16)

    shutil.move(folder / "flowers", folder / "away")
    try:
        made = gpm_tune("report", "flowers", "-o", folder / "report.html", home=home)
        again = gpm_tune("run", folder / "study.yaml", "--trials", "3", home=home)
    finally:
        shutil.move(folder / "away", folder / "flowers")
    assert made.returncode == 0, made.stderr
    assert f"folder {folder / 'flowers'}, fingerprint" in (folder / "report.html").read_text()
    assert again.returncode == 2
    assert f"{folder / 'flowers'} cannot be read as a folder" in again.stderr


@pytest.mark.parametrize("command", ["run", "run --dry-run", "train", "plan", "describe", "doctor"])
def test_a_missing_folder_is_said_before_any_work(folder: Path, command: str, tmp_path: Path) -> None:
    text = (folder / "study.yaml").read_text().replace("flowers", "nowhere")
    (tmp_path / "study.yaml").write_text(text)
    words = [*command.split(), tmp_path / "study.yaml"]
    done = gpm_tune(*words, home=None if command == "describe" else tmp_path / "home")
    assert done.returncode == (1 if command == "doctor" else 2), done.stdout + done.stderr
    said = " ".join((done.stdout if command == "doctor" else done.stderr).split())
    where = Path.cwd() if command == "describe" else tmp_path
    assert f"data.root: {where}{os.sep}nowhere cannot be read as a folder" in said.replace("- ", "-")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()
