"""Passwords in the URI of MLflow's store: no command shows them, and no process has them as an argument."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from examples import study_of

from gpm_tune.cli import main
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
    ["run", "{study}", "--dry-run"],
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


CASES = [(words, uri) for words in COMMANDS for uri in (URIS if words[0] == "sample" else URIS[:2])]


@pytest.mark.parametrize("by", ["option", "environment"])
@pytest.mark.parametrize(("words", "uri"), CASES, ids=lambda case: case if isinstance(case, str) else case[0])
def test_no_command_shows_them(
    words: list[str],
    uri: str,
    by: str,
    home: Path,
    study_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    places = {"study": study_file, "home": home}
    arguments = [word.format(**places) for word in words]
    given = ["--tracking-uri", uri] if by == "option" else []
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(sys, "argv", ["gpm-tune", *arguments, "--home", str(home), *given])
    with pytest.raises(SystemExit):
        main()
    said = capfd.readouterr()
    print(said.out, said.err)
    for planted in PLANTED:
        assert planted not in said.out + said.err
