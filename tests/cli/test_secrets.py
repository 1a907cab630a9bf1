"""Passwords in the URI of MLflow's store: no command shows them, and no process has them as an argument."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from examples import study_of
from program import COMMAND

from gpm_tune.cli import main
from gpm_tune.cli.common import this_command
from gpm_tune.study.accounts.ledger import Ledger
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
COMMANDS = [
    ["status", "{uri}"],
    ["compare", "small", "--no-such-option", "{uri}"],
    ["list", "{uri}"],
    ["resume", "unknown"],
    ["sample", RUN, "-o", "{home}/a.png"],
    ["evaluate", RUN, "--verbose"],
    ["interpolate", RUN, "-o", "{home}/a.png"],
    ["report", "small", "-o", "{home}/a.html"],
    ["delete", "small", "--yes"],
    ["fetch", "small", "--storage", "{home}/storage"],
    ["doctor"],
    ["ui", "--json"],
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a study that has no trial."""
    place = tmp_path / "home"
    place.mkdir()
    Ledger(study_of(name="small"), Home(place).optuna_uri)
    return place


CASES = [(words, uri) for words in COMMANDS for uri in (URIS if words[0] == "sample" else URIS[:1])]


@pytest.mark.parametrize("by", ["option", "environment"])
@pytest.mark.parametrize(("words", "uri"), CASES, ids=lambda case: case if isinstance(case, str) else case[0])
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
    has_option = words[0] not in ("status", "compare", "list")
    monkeypatch.setattr(
        sys, "argv", ["gpm-tune", *arguments, "--home", str(home), *(given if has_option else [])]
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("form", [["--tracking-uri", "{}"], ["--tracking-uri={}"]], ids=["two words", "one"])
def test_the_processes_of_the_ui_do_not_have_them_as_arguments(home: Path, form: list[str]) -> None:
    given = [word.format(URIS[3]) for word in form]
    process = subprocess.Popen(
        [*COMMAND, "ui", "--home", str(home), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = set()
    while process.poll() is None:  # it ends soon: there is no such database
        for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                seen.add(" ".join(member.cmdline()))
        time.sleep(0.05)
    assert process.stdout is not None
    said = process.stdout.read()
    assert any("mlflow server" in arguments for arguments in seen), said
    seen.discard(" ".join([*COMMAND, "ui", "--home", str(home), *given]))  # for an instant, as it was typed
    assert not any(planted in text for planted in PLANTED for text in [*seen, said])
