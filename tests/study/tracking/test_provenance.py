"""Where results come from, as MLflow has it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpm_tune
from gpm_tune.study.tracking.provenance import code_digest, environment_tags, requirements


def test_versions_and_machine_are_named() -> None:
    tags = environment_tags()
    assert tags["gpm.torch"] == torch.__version__.partition("+")[0] or tags["gpm.torch"] == torch.__version__
    assert tags["gpm.python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert any(line.startswith("optuna==") for line in requirements().splitlines())


def test_the_commit_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "gpm.folder_commit" not in environment_tags()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *words], check=True)
    commit = environment_tags()["gpm.folder_commit"]
    assert len(commit) == 40
    Path("file").touch()
    assert environment_tags()["gpm.folder_commit"] == f"{commit}-dirty"


def test_the_code_is_named_by_its_content_and_its_commit() -> None:
    tags = environment_tags()
    assert tags["gpm.code"] == code_digest()
    if (Path(gpm_tune.__file__).parents[1] / ".git").exists():
        assert len(tags["gpm.git_commit"].removesuffix("-dirty")) == 40
