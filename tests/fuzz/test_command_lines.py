"""Random command lines end with a message and exit code 2, or do what they say; nothing is ever started."""

import os
import sys
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpm_tune import cli

EXAMPLES = int(os.environ.get("GPM_TUNE_FUZZ", "120"))
GROUP: Any = typer.main.get_command(cli.app)
# `doctor` looks at the machine, whatever it is told; its arguments are those of the others.
COMMANDS = sorted(set(GROUP.commands) - {"doctor"})
FILES = "missing.yaml empty.yaml list.yaml binary.yaml wrong.yaml no/such/file.yaml . .. ~ / /dev/null"
VALUES = "/dev/full -1 0 1 nan inf 1e309 -- - = a=b experiment.seed=[ experiment.seed {} {{ !!set"
NAMES = "gan digits edm folder dataset network flow /proc/x.png out.png out.npz out.html out.yaml"
WORDS = [*f"{FILES} {VALUES} {NAMES}".split(), "", "a b", "é∂😀", "&a [*a]", "x" * 300, "0" * 32]
NOTHING_TO_DO = 0
BAD = 2


def options(command: str) -> list[str]:
    return [name for parameter in GROUP.commands[command].params for name in parameter.opts if name[0] == "-"]


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with arguments of all kinds, some of its options, and some of others."""
    command = draw(st.sampled_from(COMMANDS) | st.sampled_from(WORDS))
    known = options(command) if command in COMMANDS else ["--home"]
    # A tracking server or a cluster would be called; what they are told is not parsed here.
    usable = [name for name in known if name not in ("--tracking-uri", "--verbose", "-v")]
    word = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)
    pair = st.tuples(st.sampled_from([*usable, "--nonsense", "-z"]), word).map(list)
    groups = draw(st.lists(pair | word.map(lambda text: [text]), max_size=5))
    return [command, *(text for group in groups for text in group)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with bad study files."""
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "wrong.yaml").write_text("name: x\nexperiment: {data: {name: mnist}}\nsearch: {a: 1}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("GPM_TUNE_HOME", "GPM_TUNE_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(line=lines())
def test_a_random_command_line_starts_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: list[str]
) -> None:
    rmtree(folder / "gpm-runs", ignore_errors=True)  # or one that made it would be taken for another
    monkeypatch.setattr(sys, "argv", ["gpm-tune", *line])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code in (None, NOTHING_TO_DO, BAD), said.err
    assert "Traceback" not in said.err
    if ended.value.code == BAD:
        assert said.err.strip()
    assert not (folder / "gpm-runs").exists()
