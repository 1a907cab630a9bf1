"""The command line: help is quick, bad input ends with exit code 2, one message, and nothing started."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from examples import POINTS, study_data

from gpm_tune import cli
from gpm_tune.study.definition import space

COMMANDS = ["run", "train", "models", "describe", "sample", "evaluate", "interpolate", "status", "best", "ui"]
COMMANDS += ["plan", "resume", "list", "stop", "compare", "delete"]


def call(*arguments: str | Path, capsys: pytest.CaptureFixture[str], home: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program, run in this process with nothing else set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpm-tune", *map(str, arguments), "--home", str(home)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    code = ended.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def test_help_imports_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys\nfrom gpm_tune.cli import app\n"
        "for name in sys.argv[1:]:\n"
        "    app([*name.split(), '--help'], standalone_mode=False)\n"
        "    print(sorted({'torch', 'ray', 'optuna', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "", *COMMANDS], capture_output=True, text=True, check=True
    )
    assert result.stdout.count("Usage:") == len(COMMANDS) + 1
    assert [line for line in result.stdout.splitlines() if line.startswith("[")] == ["[]"] * (
        len(COMMANDS) + 1
    )


REFUSALS = {
    "missing file": ("run", "nothing.yaml", [], "nothing.yaml: no such file"),
    "misspelt bare name": ("run", "discr_flw.yaml", [], "did you mean 'discr_flow.yaml'?"),
    "unknown key": ("run", None, ["experiment.training.stepz=5"], "did you mean 'steps'?"),
    "wrong type": ("run", None, ["experiment.training.steps=many"], "expected a whole number"),
    "search path": ("run", None, ["search.model.etta={float: [1, 2]}"], "did you mean 'eta'?"),
    "low above high": (
        "run",
        None,
        ["search.model.eta.float=[5, 1]"],
        "low end 5.0 is above the high end 1.0",
    ),
    "impossible combination": (
        "run",
        None,
        ["experiment.model.discriminator={name: dcgan}"],
        "for points choose 'mlp'",
    ),
    "several GPUs": ("run", None, ["resources.gpu=64"], "a trial trains on one GPU"),
    "no such cores": ("run", None, ["resources.cpu=4096"], "asks for 4096 CPU cores"),
    "zero trials": ("run", None, ["budget.trials=0"], "greater than or equal to 1"),
    "unknown metric": ("run", None, ["objectives=[{metric: fidd}]"], "unknown metric 'fidd'"),
    "no number": ("train", None, ["experiment.seed=x"], "experiment.seed: expected a whole number"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_before_anything_starts(
    case: str, study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, file, assignments, message = REFUSALS[case]
    overrides = [word for assignment in assignments for word in ("--set", assignment)]
    home = tmp_path / "home"
    code, out, err = call(command, file or study_file, *overrides, capsys=capsys, home=home)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert out == ""
    assert not home.exists()
    assert "ray" not in {name for name in sys.modules if name == "ray._raylet"}


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nexperiment: {data: [\n")
    code, _, err = call("run", broken, capsys=capsys, home=tmp_path / "home")
    assert code == 2
    assert re.match(rf"error: {broken}:\d: not valid YAML", err)


def test_a_data_root_without_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])
    overrides = [f"experiment.data.root={tmp_path / 'empty'}", "resources.gpu=0", "resources.cpu=1"]
    words = [word for override in overrides for word in ("--set", override)]
    code, _, err = call("run", "discr_flow.yaml", *words, capsys=capsys, home=tmp_path / "home")
    assert code == 2
    assert "MNIST is not in" in err
    assert not (tmp_path / "home").exists()


def test_a_key_of_an_experiment_file_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(space.put(POINTS, {"training.bath_size": 3}), sort_keys=False))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "bath_size" in text)
    code, _, err = call("train", path, capsys=capsys, home=tmp_path / "home")
    assert code == 2
    assert f"{path}:{line}: training.bath_size: unknown key 'bath_size'; did you mean 'batch_size'?" in err


def test_a_dry_run_shows_everything_and_starts_nothing(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    words = ["--dry-run", "--trials", "3", "--name", "mine", "--set", "experiment.training.steps=500"]
    code, out, _ = call("run", study_file, *words, capsys=capsys, home=home)
    assert code == 0
    for text in ("steps: 500", "name: mine", "model.eta", "the first 3 of 3 trials", "nothing was started"):
        assert text in out
    assert not home.exists()


def test_a_plan_forecasts_every_stage(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    confirm = ["--set", "confirm={trials: 2, seeds: 3}"]
    code, out, _ = call("plan", study_file, *confirm, "--json", capsys=capsys, home=home)
    assert code == 0
    search, confirmation = json.loads(out)["parts"]
    assert (search["name"], search["trainings"]) == ("search", 4)
    assert (confirmation["name"], confirmation["trainings"]) == ("confirm", 6)
    assert 0 < search["hours"][0] <= search["hours"][1]
    code, out, _ = call("plan", study_file, "--trials", "9", capsys=capsys, home=home)
    assert re.search(r"search +9 ", out)
    assert "measured on the CPU, 1 thread" in out
    assert not home.exists()


def test_status_of_nothing_and_of_an_unknown_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    code, out, _ = call("status", "--json", capsys=capsys, home=home)
    assert (code, json.loads(out)) == (0, [])
    for command in (["status", "mine"], ["best", "mine"]):
        code, _, err = call(*command, capsys=capsys, home=home)
        assert code == 2
        assert "no study is named 'mine'" in err
    code, _, err = call("ui", capsys=capsys, home=home)
    assert code == 2
    assert "nothing has been tracked here yet" in err
    assert not home.exists()


def test_a_device_that_is_not_here_is_refused(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call("train", study_file, "--device", "tpu", capsys=capsys, home=tmp_path / "home")
    assert code == 2
    assert "--device tpu: not on this machine" in err


def test_a_study_with_another_base_under_the_same_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpm_tune.study.accounts.trial_manager import TrialManager
    from gpm_tune.study.definition.specification import StudyConfig
    from gpm_tune.study.storage.home import Home

    home = tmp_path / "home"
    home.mkdir()
    TrialManager(StudyConfig.model_validate(study_data()), Home(home).optuna_uri)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(study_data(experiment=space.put(POINTS, {"training.steps": 99}))))
    code, _, err = call("run", path, capsys=capsys, home=home)
    assert code == 2
    assert "study 'small' exists already with other values of experiment.training.steps" in err


def test_the_installed_command_prints_its_version() -> None:
    command = Path(sys.executable).with_name("gpm-tune")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    result = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=True, env=os.environ
    )
    assert re.fullmatch(r"gpm-tune \d+\.\d+\.\d+\n", result.stdout)
