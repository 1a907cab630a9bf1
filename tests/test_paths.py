"""Paths of people: with ~, relative, and with characters that mean something in URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from examples import MODELS, POINTS
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpm_tune.data.dataset import default_root
from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.metrics.features import inception_file
from gpm_tune.paths import expand
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment
from gpm_tune.uris import sqlite_file, sqlite_uri

KEYS: dict[str, dict[str, Any]] = {
    "data.root": {"data": {"name": "folder", "size": 16, "root": ...}, "evaluation.nfe": []},
    "evaluation.inception_weights": {"evaluation.inception_weights": ...},
    "model.teacher.checkpoint": {"model": {**MODELS["score_gan"], "teacher": {"checkpoint": ...}}},
}


def experiment(key: str, value: str) -> Experiment:
    """An experiment in which a key that is a path has this value."""
    changes = KEYS[key]
    if key == "data.root":
        images = {"name": "discr_flow", "sampling_steps": 3, "discriminator": {"name": "dcgan", "width": 4}}
        changes = {**changes, "model": images}
    return Experiment.model_validate(_filled(space.put(POINTS, changes), value))


def _filled(tree: Any, value: str) -> Any:
    if isinstance(tree, dict):
        return {key: _filled(inner, value) for key, inner in tree.items()}
    return value if tree is ... else tree


def paths_of(tree: Any, prefix: str = "") -> Iterator[str]:
    """The keys of an experiment that hold a path."""
    for name in type(tree).model_fields:
        value = getattr(tree, name)
        if isinstance(value, Path):
            yield prefix + name
        elif hasattr(type(value), "model_fields"):
            yield from paths_of(value, f"{prefix}{name}.")


@pytest.mark.parametrize("key", KEYS)
def test_a_path_of_an_experiment_is_the_same_everywhere(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = experiment(key, "a/file")
    monkeypatch.chdir("/")
    assert list(paths_of(relative)) == [key]
    again = Experiment.model_validate(relative.model_dump(mode="json"))
    for found in (relative, again):
        (path,) = [value for value in _values(found.model_dump()) if isinstance(value, Path)]
        assert path == tmp_path / "a/file"
    (kept,) = [v for v in _values(experiment(key, "~/a").model_dump()) if isinstance(v, Path)]
    assert kept == Path("~/a"), "on another node it is the home that is there"
    with pytest.raises(ValidationError, match="no user nobody_of_this_name"):
        experiment(key, "~nobody_of_this_name/a")


def _values(tree: Any) -> Iterator[Any]:
    for value in tree.values():
        yield from _values(value) if isinstance(value, dict) else (value,)


def test_a_tilde_is_the_home_in_every_variable_and_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("GPM_TUNE_HOME", "GPM_TUNE_STORAGE", "GPM_TUNE_DATA"):
        monkeypatch.setenv(name, f"~/{name}")
    home = Home(None)
    assert home.root == tmp_path / "GPM_TUNE_HOME"
    assert home.storage == str(tmp_path / "GPM_TUNE_STORAGE")
    assert default_root() == tmp_path / "GPM_TUNE_DATA"
    given = Home(Path("~/here"), storage="~/there")
    assert (given.root, given.storage) == (tmp_path / "here", str(tmp_path / "there"))
    assert inception_file(Path("~/w.pth")) == tmp_path / "w.pth"


def test_no_such_user_is_said_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"no user nobody_of_this_name\nhelp: .* ./~nobody_of_this_name"):
        expand("~nobody_of_this_name/runs")
    assert expand("a/~b") == Path("a/~b")
    tree = space.put(POINTS, {"evaluation.inception_weights": "~nobody_of_this_name/w"})
    with pytest.raises(
        UserError, match=r"user nobody_of_this_name, found '~nobody.*'\nhelp: .* \./~nobody_of_this_name$"
    ):
        Document("study.yaml", tree, {}).parse(Experiment)


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_a_database_is_found_whatever_its_path(name: str) -> None:
    file = Path("/home") / name / "optuna.db"
    url = sqlite_uri(file)
    assert sqlite_file(url) == file
    assert sqlalchemy.make_url(url.format(SCHEMA_VERSION="12")).database == str(file), "as Optuna reads it"


@pytest.mark.parametrize("url", ["http://127.0.0.1:5000", "postgresql://host/db", "sqlite://"])
def test_a_store_without_a_file_has_none(url: str) -> None:
    assert sqlite_file(url) is None


def test_a_home_whose_databases_no_path_can_name_is_refused(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 100] * 6)
    deep.mkdir(parents=True)
    with pytest.raises(UserError, match="longer than SQLite"):
        Home(deep).check()
