"""Models of another package, which no name in the program knows: trained, sampled, searched and drawn."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from examples import POINTS
from preloaded import PROGRAM
from test_plugins import call

HERE = Path(__file__).parent
SCRIPT = "import runpy, sys; runpy.run_path(sys.argv.pop(1), None, '__main__')"
MODELS = {
    "straight": "StraightConfig",
    "heuns_discriminator": "HeunsDiscriminatorConfig",
    "pull": "PullConfig",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(HERE / "plugin_models.py", folder / "other_models.py")
    info = folder / "other_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-models\nVersion: 1.0\n")
    entries = [f"{name} = other_models:{config}" for name, config in MODELS.items()]
    (info / "entry_points.txt").write_text("\n".join(["[gpm_tune.models]", *entries, ""]))
    return folder


def run(place: Path, folder: Path, *words: str) -> str:
    """The output of a command of the program, or of a script, which has to succeed."""
    result = call(place, folder, *words, code=SCRIPT if words[0].endswith(".py") else PROGRAM)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_experiment(folder: Path, model: str) -> Path:
    training = {"steps": 0 if model == "pull" else 40, "batch_size": 32}
    evaluation = {"every": 20, "samples": 100, "nfe": [3]}
    file = folder / f"{model}.yaml"
    plain = {**POINTS, "model": {"name": model}, "training": training, "evaluation": evaluation}
    file.write_text(yaml.safe_dump(plain))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "met", "nfe"), [("straight", 3, 15), ("heuns_discriminator", 2, 7), ("pull", 3, 5)]
)
def test_it_is_trained_and_measured_at_its_counted_nfe(
    model: str, met: int, nfe: int, place: Path, tmp_path: Path
) -> None:
    """Heun's N steps take 2 N - 1 evaluations; where it stops early, it stops after 2 and not after 3."""
    trained = json.loads(run(place, tmp_path, "train", f"{write_experiment(tmp_path, model)}", "--json"))
    assert trained["finished"]
    latest = max((Path(trained["folder"]) / "checkpoints").iterdir())
    curve = json.loads((latest / "checkpoint.json").read_text())["best"]["curve"]
    assert set(curve) == {str(met), str(nfe)}
    run(place, tmp_path, "sample", str(latest), "-o", "samples.npz", "--n", "10")
    described = json.loads(run(place, tmp_path, "describe", f"{model}.yaml", "--json"))
    assert described["nfe"] == nfe


def test_the_taxonomy_has_them(place: Path, tmp_path: Path) -> None:
    rows = json.loads(run(place, tmp_path, "models", "--json"))
    assert set(MODELS) <= {row["model"] for row in rows}


@pytest.mark.slow
def test_a_study_of_one_is_run_and_drawn(place: Path, tmp_path: Path) -> None:
    experiment = yaml.safe_load(write_experiment(tmp_path, "straight").read_text())
    study = {
        "name": "lines",
        "experiment": experiment,
        "search": {"model.sampling_steps": {"int": [4, 8]}},
        "budget": {"trials": 2},
        "resources": {"cpu": 1, "concurrent": 1},
    }
    (tmp_path / "lines.yaml").write_text(yaml.safe_dump(study))
    home = ["--home", "home"]
    run(place, tmp_path, "run", "lines.yaml", *home)
    scripts = HERE.parent / "analysis"
    costs = run(
        place, tmp_path, str(scripts / "compute.py"), "lines", "-o", "compute", "--metric", "frechet", *home
    )
    assert "Flow matching, trial" in costs
    drawn = ["lines", "-o", "nfe", "--nfe", "2", "4", "--samples", "100", "--solver", "euler", *home]
    run(place, tmp_path, str(scripts / "nfe_fid.py"), *drawn)
    with (tmp_path / "nfe.csv").open() as file:
        assert {(row["label"], row["nfe"]) for row in csv.DictReader(file)} == {
            ("Flow matching", "2"),
            ("Flow matching", "4"),
        }
    figure = ["lines", "-o", "particles", "--particles", "50", *home]
    run(place, tmp_path, str(scripts / "gaussians.py"), *figure)
    page = run(place, tmp_path, "report", "lines", *home)
    assert re.search(r"lines.*\.html", page)
