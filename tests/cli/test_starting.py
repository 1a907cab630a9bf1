"""`gpm-tune schema`, `init` and `new`, as a user runs them."""

import json
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from jsonschema import Draft202012Validator
from program import call

ROOT = Path(__file__).parents[2]


def test_a_schema_is_printed_or_written(tmp_path: Path) -> None:
    printed = call(tmp_path, "schema", "--experiment")
    assert printed.returncode == 0, printed.stderr
    Draft202012Validator.check_schema(json.loads(printed.stdout))
    written = call(tmp_path, "schema", "-o", "study.schema.json")
    assert written.returncode == 0, written.stderr
    assert "# yaml-language-server: $schema=study.schema.json" in written.stdout
    assert json.loads((tmp_path / "study.schema.json").read_text(encoding="utf-8"))["required"] == [
        "name",
        "experiment",
        "search",
    ]


FEW_STEPS = {
    "gaussians": ["experiment.data.samples=500", "experiment.evaluation.samples=100"],
    "digits": ["experiment.evaluation.samples=20"],
}


@pytest.mark.slow
@pytest.mark.parametrize("data", FEW_STEPS)
def test_what_init_writes_runs(data: str, tmp_path: Path) -> None:
    begun = call(tmp_path, "init", "--model", "gan", "--data", data)
    assert begun.returncode == 0, begun.stderr
    assert f"gpm-tune run gan_{data}.yaml --dry-run" in begun.stdout
    few = [*FEW_STEPS[data], "experiment.training.steps=4", "experiment.evaluation.every=2"]
    overrides = [word for change in few for word in ("--set", change)]
    run = call(tmp_path, "run", f"gan_{data}.yaml", "--trials", "1", *overrides)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"gan_{data}" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "--model", "gam"], "did you mean 'gan'?"),
        (["init", "--data", "folder"], "--root FOLDER"),
        (["init", "there.yaml"], "overwrite it with --force"),
        (["new", "model", "x"], "valid: dataset, flow, network"),
        (["new", "dataset", "Two-Moons"], "expected a name of small letters"),
        (["new", "network", "mlp"], "there is a network 'mlp' already"),
        (["new", "flow", "x", "there.yaml"], "no empty folder"),
    ],
)
def test_what_cannot_be_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("mine")
    result = call(tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def test_new_says_where_to_go_on(tmp_path: Path) -> None:
    result = call(tmp_path, "new", "flow", "big_kernel")
    assert result.returncode == 0, result.stderr
    assert "pip install --editable gpm-tune-big-kernel" in result.stdout
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        f"gpm-tune-big-kernel/{name}"
        for name in (
            "README.md",
            "big_kernel.yaml",
            "gpm_tune_big_kernel.py",
            "pyproject.toml",
            "tests/test_big_kernel.py",
        )
    }


def test_the_wheel_has_what_these_commands_read() -> None:
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    templates = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "gpm_tune/templates").rglob("*.template")
    }
    assert len(templates) == 14
    assert templates <= packed
    assert {"gpm_tune/py.typed", "gpm_tune/search_spaces/study.schema.json"} <= packed
