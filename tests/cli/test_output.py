"""How commands answer: people, programs, shells, terminals and logs."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from examples import study_data
from hypothesis import given
from hypothesis import strategies as st
from program import COMMAND, gpm_tune

from gpm_tune.cli import app
from gpm_tune.cli.output import without_nan

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
ANSI = "\x1b["


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(PLAIN)
def test_json_has_null_for_what_it_cannot_say(data: object) -> None:
    text = json.dumps(without_nan(data), allow_nan=False)
    python = json.dumps(data)
    assert json.loads(text) == json.loads(python, parse_constant=lambda _: None)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_flags_and_examples_of_itself(name: str) -> None:
    command = GROUP.commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= options
    title, *examples = command.epilog.splitlines()
    assert title == "Examples:"
    assert examples
    for example in examples:
        words = example.split()
        assert words[:2] == ["gpm-tune", name], example
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, example
    assert all(getattr(parameter, "help", None) for parameter in command.params), "no help"


def test_a_study_answers_programs(tmp_path: Path) -> None:
    file, home = tmp_path / "small.yaml", tmp_path / "home"
    file.write_text(yaml.safe_dump(study_data(budget={"trials": 1})))

    ran = gpm_tune("run", file, "--json", home=home)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["trials"][0]["state"] == "complete"
    assert "trial 0: complete" in ran.stderr

    again = gpm_tune("resume", "small", "--quiet", home=home)
    assert again.returncode == 0
    assert again.stdout.lstrip().startswith("study small: 1 complete")
    assert "gpm-tune ui" not in again.stdout
    assert again.stderr == ""

    for words in (["status", "small"], ["best", "small"], ["compare", "small"], ["list"]):
        json.loads(gpm_tune(*words, "--json", home=home).stdout)
    drawn = gpm_tune("sample", "small", "--n", "2", "-o", tmp_path / "x.npz", "--json", home=home)
    assert json.loads(drawn.stdout)["samples"] == 2
    plan = json.loads(gpm_tune("run", file, "--dry-run", "--json", home=home).stdout)
    assert plan["study"]["name"] == "small"
    assert plan["first_trials"][0]["number"] == 0
    gone = gpm_tune("delete", "small", "--yes", "--json", home=home)
    deleted = json.loads(gone.stdout)
    assert (deleted["study"], deleted["trials"]) == ("small", 1)
    assert ["registered model" in note for note in deleted["notes"]] == [True]


def test_verbose_errors_say_where_they_arose() -> None:
    brief, long = gpm_tune("describe", "nothing.yaml"), gpm_tune("describe", "nothing.yaml", "--verbose")
    assert brief.returncode == long.returncode == 2
    assert "Traceback" not in brief.stderr
    assert "Traceback" in long.stderr
    assert "find_file" in long.stderr
    assert long.stderr.splitlines()[-1] == brief.stderr.splitlines()[-1]


def test_a_bug_is_told_from_bad_input() -> None:
    code = "from gpm_tune.cli import script\ndef main() -> None:\n    1 / 0\nscript(main)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 70
    assert "ZeroDivisionError" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ZeroDivisionError: a bug of gpm-tune")


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    for command, ending in (("sample", "png"), ("interpolate", "png"), ("report", "html")):
        refused = gpm_tune(command, "any", "-o", tmp_path / "nowhere" / f"x.{ending}", home=tmp_path / "home")
        assert refused.returncode == 2
        assert "there is no folder" in refused.stderr


def test_a_home_that_cannot_be_is_refused_first(study_file: Path) -> None:
    for command in ("run", "train"):
        refused = gpm_tune(command, study_file, "--set", "experiment.seed=1", home=study_file / "home")
        assert refused.returncode == 2
        assert f"{study_file} is no folder; name another one with --home" in refused.stderr


def test_a_cluster_that_is_not_there_leaves_no_study(study_file: Path, tmp_path: Path) -> None:
    refused = gpm_tune("run", study_file, "--address", "127.0.0.1:9", home=tmp_path / "home")
    assert refused.returncode == 2
    assert "no Ray cluster answers" in refused.stderr
    assert not (tmp_path / "home").exists()


def test_colours_are_for_terminals_only() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI")}
    environment |= {"TERM": "xterm-256color", "GPM_TUNE_DATA": "/nonexistent"}
    command = [*COMMAND, "models", "--help"]
    piped = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert ANSI not in piped.stdout + piped.stderr
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = _read(master)
        process.wait(60)
    assert ANSI.encode() in shown


def _read(terminal: int) -> bytes:
    """All that is shown on a terminal until its last process has left it."""
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen, suppress(OSError):
        while data := screen.read(4096):
            shown += data
    return shown


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("gpm-tune ru", "run"),
        ("gpm-tune run discr_f", "discr_flow.yaml"),
        ("gpm-tune best --home {home} ol", "old"),
    ],
)
def test_the_shell_completes_commands_files_and_studies(line: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "home" / "studies" / "old").mkdir(parents=True)
    line = line.format(home=tmp_path / "home")
    environment = {
        **os.environ,
        "_GPM_TUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    program = str(Path(sys.executable).with_name("gpm-tune"))
    found = subprocess.run([program], capture_output=True, text=True, env=environment, check=False)
    assert wanted in re.split(r"\s+", found.stdout), found.stderr
