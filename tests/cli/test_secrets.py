"""Passwords in the URI of MLflow's store: no command shows them, and no process has them as an argument."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from examples import study_of
from program import COMMAND

from gpm_tune.cli import main
from gpm_tune.cli.common import this_command
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.storage.home import Home

PLANTED = ("planted1", "planted2")  # halves of a password
URIS = [
    "http://user:planted1/planted2@127.0.0.1:1",  # the first half is taken for a port
    "http://planted1%2Fplanted2@127.0.0.1:1/mlflow",
    "http://127.0.0.1:1/?token=planted1&key=planted2",
    "postgresql://user:planted1/planted2@127.0.0.1:1/db",
    "nonsense://user:planted1@planted2@host",
]
RUN = "0" * 32
SAMPLE = ["sample", RUN, "-o", "{home}/a.png"]
OPENING = [  # commands that open the store, each in its own way, or show its URI
    ["evaluate", RUN, "--verbose"],
    ["report", "small", "-o", "{home}/a.html"],
    ["delete", "small", "--yes"],
    ["fetch", "small", "--storage", "{home}/storage"],
    ["doctor"],
    ["ui", "--json"],
]
WITHOUT_OPTION = [["status", "{uri}"], ["compare", "small", "--no-such-option", "{uri}"], ["list", "{uri}"]]
CASES = [
    *((SAMPLE, uri, "option") for uri in URIS),
    *((words, URIS[0], "option") for words in OPENING),
    *((words, URIS[0], "environment") for words in (SAMPLE, *WITHOUT_OPTION)),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a study that has no trial."""
    place = tmp_path / "home"
    place.mkdir()
    TrialManager(study_of(name="small"), Home(place).optuna_uri)
    return place


@pytest.mark.parametrize(
    ("words", "uri", "by"), CASES, ids=lambda case: case if isinstance(case, str) else case[0]
)
def test_no_command_shows_them(
    words: list[str],
    uri: str,
    by: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    places = {"uri": uri, "home": home}
    arguments = [word.format(**places) for word in words]
    given = ["--tracking-uri", uri] if by == "option" else []
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(sys, "argv", ["gpm-tune", *arguments, "--home", str(home), *given])
    with pytest.raises(SystemExit):
        main()
    said = capfd.readouterr()
    for planted in PLANTED:
        assert planted not in said.out + said.err


def test_the_command_to_repeat_is_shown_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = URIS[3]
    for given in (["--tracking-uri", uri], [f"--tracking-uri={uri}"]):
        monkeypatch.setattr(sys, "argv", ["gpm-tune", "run", "my study.yaml", *given])
        assert this_command() in (
            "gpm-tune run 'my study.yaml' --tracking-uri 'postgresql://***@127.0.0.1:1/db'",
            "gpm-tune run 'my study.yaml' '--tracking-uri=postgresql://***@127.0.0.1:1/db'",
        )


RECORD = """\
import os, sys

def record(event, arguments):
    if event in ("os.exec", "os.posix_spawn", "subprocess.Popen"):
        words = arguments[1]
        with open(os.environ["STARTED"], "a") as file:
            print(words if isinstance(words, str) else " ".join(map(str, words)), file=file)

sys.addaudithook(record)
"""  # what every Python process of a tree starts


@pytest.mark.slow
@pytest.mark.parametrize("form", [["--tracking-uri", "{}"], ["--tracking-uri={}"]], ids=["two words", "one"])
def test_the_processes_of_the_ui_do_not_have_them_as_arguments(
    home: Path, form: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(RECORD)
    started = tmp_path / "started"
    given = [word.format(URIS[3]) for word in form]
    process = subprocess.run(  # it ends soon: there is no such database
        [*COMMAND, "ui", "--home", str(home), *given],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "STARTED": str(started)},
        timeout=120,
        check=False,
    )
    said = process.stdout + process.stderr
    arguments = started.read_text()
    assert f"ui --home {home} --tracking-uri" in arguments, "it has started itself again, without them"
    assert "mlflow server" in arguments, said
    assert not any(planted in text for planted in PLANTED for text in (arguments, said))
