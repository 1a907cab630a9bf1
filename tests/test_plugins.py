"""Packages that add data sets, networks, flows, solvers: the generated ones work, broken ones are refused."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import program
import pytest
import typer
from examples import experiment_of
from preloaded import PROGRAM

from gpm_tune import plugins
from gpm_tune.cli import run
from gpm_tune.cli.common import BAD_INPUT
from gpm_tune.cli.output import with_flags
from gpm_tune.config import Config
from gpm_tune.data.fingerprint import load
from gpm_tune.errors import UserError
from gpm_tune.study.running.trainable import reason_of
from gpm_tune.study.starting.skeleton import KINDS, write_skeleton

NAMES = {"dataset": "two_moons", "network": "wave", "flow": "inverse_multiquadric", "solver": "leapfrog"}
PYTEST = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]


def call(
    place: Path, folder: Path, *words: str | Path, code: str = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """Run the program, or other code, in a folder, with the packages that are installed in a place."""
    paths = os.pathsep.join([str(place), *sys.path])
    return program.call(folder, *map(str, words), code=code, imported="libraries", PYTHONPATH=paths)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> the folder of a generated package."""
    folder = tmp_path_factory.mktemp("sources")
    return {kind: write_skeleton(kind, name, folder / kind) for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def place(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the generated packages are installed."""
    folder = tmp_path_factory.mktemp("place")
    subprocess.run([*PIP, "--target", folder, *sources.values()], check=True, timeout=120)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_package_passes_its_own_tests_and_style(
    kind: str, sources: dict[str, Path], place: Path
) -> None:
    tested = call(place, sources[kind], "-q", "-p", "no:cacheprovider", code=PYTEST)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    for words in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        result = subprocess.run(ruff, cwd=sources[kind], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_package_is_typed(
    kind: str, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.getbasetemp() / "mypy"  # of gpm_tune, which all packages import
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(cache)]
    result = subprocess.run(mypy, cwd=sources[kind], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_trains_with_it(kind: str, sources: dict[str, Path], place: Path, tmp_path: Path) -> None:
    name = NAMES[kind]
    few = ["experiment.evaluation.samples=100", "experiment.evaluation.every=2"]
    few += [] if kind == "flow" else ["experiment.training.steps=4"]
    overrides = [word for change in few for word in ("--set", change)]
    study = sources[kind] / f"{name}.yaml"
    trained = call(place, tmp_path, "train", study, *overrides, "--home", "home")
    assert trained.returncode == 0, trained.stderr
    assert "best sliced_wasserstein" in trained.stdout
    described = call(place, tmp_path, "describe", study)
    assert described.returncode == 0, described.stderr
    mistyped = tmp_path / "mistyped.yaml"
    mistyped.write_text(study.read_text().replace(f"{{name: {name}", f"{{name: {name[:-1]}"))
    refused = call(place, tmp_path, "describe", mistyped)
    assert refused.returncode == 2
    assert f"did you mean '{name}'?" in refused.stderr


def test_schema_and_init_know_them(place: Path, tmp_path: Path) -> None:
    schema = call(place, tmp_path, "schema")
    assert schema.returncode == 0, schema.stderr
    assert all(f'"{name}"' in schema.stdout for name in NAMES.values())
    begun = call(place, tmp_path, "init", "x.yaml", "--model", "gan", "--data", "two_moons")
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
    result = call(place, tmp_path, code=script)
    assert result.returncode == 0, result.stderr


CONFIG = "from typing import Literal\nfrom gpm_tune.config import Config\nclass Mine(Config):\n    name: "
BROKEN = {
    "raises at import": ("gpm_tune.data", "mine", "import nothing_like_this", "ModuleNotFoundError"),
    "exits at import": (
        "gpm_tune.data",
        "mine",
        "import sys; sys.exit('\\x1b[31mbye')",
        r"SystemExit: \x1b[31mbye",
    ),
    "ends with what is no Exception": (
        "gpm_tune.data",
        "mine",
        "class Odd(BaseException): pass\nraise Odd('one\\ntwo')",
        r"Odd: one\ntwo",
    ),
    "is no Config": ("gpm_tune.data", "mine", "class Mine: pass", "is not a class derived from"),
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


@pytest.mark.parametrize("case", ["exits at import", "is no Config", "has a taken name", "lacks methods"])
def test_a_broken_plug_in_is_one_message_of_the_program(case: str, tmp_path: Path) -> None:
    write_broken(case, tmp_path)
    result = call(tmp_path, tmp_path, "describe", "quickstart.yaml")
    assert result.returncode == 2, result.stderr
    assert BROKEN[case][3] in result.stderr
    assert "broken" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("value", ["broken:Mine!", "not a module", "", ":Mine", "broken:Mine\u202e"])
def test_an_entry_point_that_is_none_is_refused(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = write_broken("is no Config", tmp_path)
    points = tmp_path / "broken-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[{group}]\nmine = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"of the package broken .*expected MODULE:CLASS") as error:
        plugins.installed.__wrapped__(group)
    assert str(error.value).isprintable()


FAULTY = (
    CONFIG
    + """Literal["mine"]
    shape: ClassVar = (2,)
    validation_samples: ClassVar = 10
    fault: str

    def prepare(self): exec(self.fault)
    def load(self, seed): return eval(self.fault)

def command(): raise SystemExit(3)
"""
)
FAULTS = {
    "import sys; sys.exit(0)": "SystemExit: 0",
    "raise EOFError": "EOFError",
    r"raise KeyError('\x1b[31m\nred')": r"KeyError: '\x1b",
    "raise type('Odd', (BaseException,), {})('x')": "Odd: x",
    "import torch; torch.zeros(2) @ torch.zeros(3)": "RuntimeError: ",
    "import json; json.loads('x')": "JSONDecodeError: ",
}


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Config]:
    """A plug-in of a data set that runs any code."""
    write_broken("is no Config", tmp_path)
    (tmp_path / "broken.py").write_text(f"from typing import ClassVar\n{FAULTY}\nMine = Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    (found,) = plugins.installed.__wrapped__("gpm_tune.data")
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_plug_in_raises_at_use_is_a_sentence_with_its_package(
    fault: str, faulty: type[Config]
) -> None:
    def use() -> None:
        faulty.model_validate({"name": "mine", "fault": fault}).prepare()  # type: ignore[attr-defined]

    with pytest.raises(UserError, match=r"^the plug-in package broken failed: ") as error:
        with_flags(use)(json=False, quiet=False, verbose=False)
    assert FAULTS[fault] in str(error.value)
    assert str(error.value).isprintable()
    assert error.value.__cause__ is not None
    assert reason_of(error.value.__cause__, experiment_of()) == str(error.value), "of a trial, too"


def test_what_others_raise_is_not_a_plug_ins(faulty: type[Config]) -> None:
    for expected in (KeyboardInterrupt, UserError):
        with pytest.raises(expected) as raised:
            faulty.model_validate(
                {"name": "mine", "fault": f"from gpm_tune.errors import UserError; raise {expected.__name__}"}
            ).prepare()  # type: ignore[attr-defined]
        assert plugins.failure(raised.value) is None
    with pytest.raises(SystemExit) as ended:
        sys.exit(0)
    assert plugins.failure(ended.value) is None


OTHERS = {
    "a command ends": ("import typer; raise typer.Exit(1)", typer.Exit),
    "a disk is full": ("import errno; raise OSError(errno.ENOSPC, 'full')", OSError),
    "MLflow fails": ("from mlflow.exceptions import MlflowException as E; raise E('x')", Exception),
    "a GPU is full": ("import torch; raise torch.OutOfMemoryError('x')", RuntimeError),
    "our code fails": (
        "from pathlib import Path; from gpm_tune.data.images import decode; decode(Path(), 3, 8)",
        ValueError,
    ),
    "our code exits": ("import sys; from gpm_tune.cli import run; run(sys.exit)", SystemExit),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_others_say_passes_through_a_plug_in(case: str, faulty: type[Config]) -> None:
    fault, expected = OTHERS[case]

    def use() -> None:
        faulty.model_validate({"name": "mine", "fault": fault}).prepare()  # type: ignore[attr-defined]

    with pytest.raises(expected) as error:
        with_flags(use)(json=False, quiet=False, verbose=False)
    assert not isinstance(error.value, UserError)


def test_a_plug_ins_network_trouble_is_no_bug_of_ours(
    faulty: type[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    fault = "from urllib.error import URLError; raise URLError('no route')"

    def use() -> None:
        faulty.model_validate({"name": "mine", "fault": fault}).prepare()  # type: ignore[attr-defined]

    with pytest.raises(SystemExit) as end:
        run(lambda: with_flags(use)(json=False, quiet=False, verbose=False))
    assert end.value.code == BAD_INPUT
    assert capsys.readouterr().err.startswith("error: the plug-in package broken failed: URLError: ")


def test_a_plug_ins_own_script_ends_as_it_says(faulty: type[Config]) -> None:
    with pytest.raises(SystemExit) as end:
        with_flags(sys.modules[faulty.__module__].command)(json=False, quiet=False, verbose=False)
    assert end.value.code == 3


@pytest.mark.parametrize("given", ["(1, 2)", "__import__('contents').points(3)"])
def test_a_plug_in_that_gives_other_data_than_it_says_is_refused(given: str, faulty: type[Config]) -> None:
    config: Any = faulty.model_validate({"name": "mine", "fault": given})
    with pytest.raises(
        UserError, match=r"the data set 'mine' \(broken\) gives .* expected a .*of shape \(2,\)"
    ):
        load(config, 0)
