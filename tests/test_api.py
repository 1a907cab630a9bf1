"""The Python interface: what the command line does, as objects; also in a notebook."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbclient
import nbformat
import pytest
import ray
import torch
import yaml
from examples import study_data

from gpm_tune import Study
from gpm_tune.errors import UserError
from gpm_tune.training.generation import load_sampler

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "small.yaml"
    path.write_text(yaml.safe_dump(study_data(budget={"trials": 1})))
    return path


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import gpm_tune, sys; print(sorted({'torch', 'ray', 'optuna'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    with pytest.raises(ImportError, match="Stduy"):
        exec("from gpm_tune import Stduy")


def test_what_is_wrong_is_said_before_anything_runs(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"override: budget.trials: .*(greater|at least)"):
        Study(file, {"budget.trials": 0}, home=tmp_path / "home")
    study = Study(file, home=tmp_path / "home")
    assert repr(study) == "Study('small': not run yet)"
    for call in (study.best, study.trials, study.resume):
        with pytest.raises(UserError, match="no study"):
            call()
    with pytest.raises(UserError, match="no study"):
        Study.open("small", home=tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_a_study_from_its_start_to_its_samples(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    study = Study(file, {"experiment.seed": 3}, home=home)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(study.run)
        while not ray.is_initialized():
            assert not running.done()
            time.sleep(0.1)
        with pytest.raises(UserError, match=r"call ray\.shutdown\(\) first"):
            Study(file, home=tmp_path / "other").run()
        assert running.result()
    assert study.resume(trials=2)
    assert repr(Study.open("small", home=home)) == "Study('small': 2 complete)"

    frame = study.trials()
    assert list(frame["trial"]) == [0, 1]
    assert set(frame["seed"]) == {3}
    best = study.best()
    row = frame.set_index("trial").loc[best.number]
    assert best.value == row["sliced_wasserstein"] == frame["sliced_wasserstein"].min()
    assert best.values["model.eta"] == row["model.eta"] == best.experiment.model.eta  # type: ignore[union-attr]

    samples = best.sample(5, seed=1)
    sampler = load_sampler(best.saved, nfe=None, solver=None, steps=None, device="cpu")
    assert torch.equal(samples, sampler.draw(5, 1)[1])
    assert best.sample(3, nfe=1).shape == (3, 2)
    with pytest.raises(UserError, match="NFE 99"):
        best.sample(3, nfe=99)


@pytest.mark.slow
def test_a_notebook_shows_how_the_study_goes(file: Path, tmp_path: Path) -> None:
    cells = [
        f"from gpm_tune import Study\nstudy = Study({str(file)!r}, home={str(tmp_path / 'home')!r})",
        "study.run()",
        "study.trials()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    shown = ["".join(output.get("text", "") for output in cell["outputs"]) for cell in notebook.cells]
    assert "trial 0: step 12/12, sliced_wasserstein" in shown[1]
    assert "trial 0: complete" in shown[1]
    assert "\x1b[" not in shown[1]
    assert "<table" in notebook.cells[2]["outputs"][0]["data"]["text/html"]
