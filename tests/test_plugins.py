"""Packages that add data sets, networks and flows: the generated ones work, and broken ones are refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from program import COMMAND

from gpm_tune import plugins
from gpm_tune.errors import UserError
from gpm_tune.study.starting.skeleton import KINDS, write_skeleton

NAMES = {"dataset": "two_moons", "network": "wave", "flow": "inverse_multiquadric"}
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]


def call(command: list[str], place: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with the packages that are installed in a place."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"},
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> the folder of a generated package."""
    folder = tmp_path_factory.mktemp("sources")
    return {kind: write_skeleton(kind, name, folder / kind) for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def place(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the generated packages are installed."""
    folder = tmp_path_factory.mktemp("place")
    for source in sources.values():
        subprocess.run([*PIP, "--target", str(folder), str(source)], check=True, timeout=120)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_package_passes_its_own_tests_and_style(
    kind: str, sources: dict[str, Path], place: Path
) -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ruff = [sys.executable, "-m", "ruff"]
    for command in (
        tests,
        [*ruff, "check", "--no-cache", "."],
        [*ruff, "format", "--no-cache", "--check", "."],
    ):
        result = call(command, place, sources[kind])
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_package_is_typed(
    kind: str, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.getbasetemp() / "mypy"  # of gpm_tune, which all packages import
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(cache)]
    result = call(mypy, sources[kind], sources[kind])
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_trains_with_it(kind: str, sources: dict[str, Path], place: Path, tmp_path: Path) -> None:
    name = NAMES[kind]
    few = ["experiment.evaluation.samples=100", "experiment.evaluation.every=2"]
    few += [] if kind == "flow" else ["experiment.training.steps=4"]
    overrides = [word for change in few for word in ("--set", change)]
    study = sources[kind] / f"{name}.yaml"
    trained = call([*COMMAND, "train", str(study), *overrides, "--home", "home"], place, tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "best sliced_wasserstein" in trained.stdout
    described = call([*COMMAND, "describe", str(study)], place, tmp_path)
    assert described.returncode == 0, described.stderr
    mistyped = tmp_path / "mistyped.yaml"
    mistyped.write_text(study.read_text().replace(f"{{name: {name},", f"{{name: {name[:-1]},"))
    refused = call([*COMMAND, "describe", str(mistyped)], place, tmp_path)
    assert refused.returncode == 2
    assert f"did you mean '{name}'?" in refused.stderr


def test_schema_and_init_know_them(place: Path, tmp_path: Path) -> None:
    schema = call([*COMMAND, "schema"], place, tmp_path)
    assert schema.returncode == 0, schema.stderr
    assert all(f'"{name}"' in schema.stdout for name in NAMES.values())
    begun = call([*COMMAND, "init", "x.yaml", "--model", "gan", "--data", "two_moons"], place, tmp_path)
    assert begun.returncode == 0, begun.stderr
    text = (tmp_path / "x.yaml").read_text()
    assert "turns: 1.5  # How often the spiral winds around its centre." in text
    assert "sliced_wasserstein" in text


@pytest.mark.parametrize("kind", KINDS)
def test_it_may_be_imported_before_the_program(kind: str, place: Path, tmp_path: Path) -> None:
    """Then it is not complete when the union to which it adds is made."""
    script = (
        f"import gpm_tune_{NAMES[kind]}; from gpm_tune.study.definition.schema import study_schema; "
        f"assert '\"{NAMES[kind]}\"' in str(study_schema()).replace(\"'\", '\"')"
    )
    result = call([sys.executable, "-c", script], place, tmp_path)
    assert result.returncode == 0, result.stderr


CONFIG = "from typing import Literal\nfrom gpm_tune.config import Config\nclass Mine(Config):\n    name: "
BROKEN = {
    "raises at import": ("gpm_tune.data", "mine", "import nothing_like_this", "ModuleNotFoundError"),
    "is no Config": ("gpm_tune.data", "mine", "class Mine: pass", "is no class derived from"),
    "has no class": ("gpm_tune.flows", "mine", "", "cannot be loaded: AttributeError"),
    "has another name": (
        "gpm_tune.data",
        "mine",
        CONFIG + 'Literal["yours"]',
        "needs the field `name: Literal[",
    ),
    "has no name": ("gpm_tune.data", "mine", CONFIG.removesuffix("name: ") + "size: int", "needs the field"),
    "has a name of any text": ("gpm_tune.data", "mine", CONFIG + "str", "needs the field `name: Literal["),
    "has a taken name": (
        "gpm_tune.networks",
        "mlp",
        CONFIG
        + 'Literal["mlp"]\n    def check_shape(self, s): pass\n    def build_denoiser(self, s, e): pass',
        "the name 'mlp' is that of another member of gpm_tune.networks",
    ),
    "lacks methods": ("gpm_tune.data", "mine", CONFIG + 'Literal["mine"]', "Mine lacks shape,"),
    "lacks every role": (
        "gpm_tune.networks",
        "mine",
        CONFIG + 'Literal["mine"]\n    def check_shape(self, shape): pass',
        "Mine lacks build_discriminator or build_generator or build_denoiser",
    ),
}


def write_broken(case: str, folder: Path) -> str:
    """An installed package with a plug-in that is wrong; returns the group of its entry point."""
    group, name, code, _ = BROKEN[case]
    (folder / "broken.py").write_text(code + "\n")
    info = folder / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = broken:Mine\n")
    return group


@pytest.mark.parametrize("case", [case for case in BROKEN if case != "has a taken name"])
def test_a_broken_plug_in_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = write_broken(case, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UserError, match=f"of the package broken .*{re.escape(BROKEN[case][3])}"):
        plugins.installed.__wrapped__(group)


@pytest.mark.parametrize("case", ["raises at import", "is no Config", "has a taken name", "lacks methods"])
def test_a_broken_plug_in_is_one_message_of_the_program(case: str, tmp_path: Path) -> None:
    write_broken(case, tmp_path)
    result = call([*COMMAND, "describe", "quickstart.yaml"], tmp_path, tmp_path)
    assert result.returncode == 2, result.stderr
    assert BROKEN[case][3] in result.stderr
    assert "broken" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
