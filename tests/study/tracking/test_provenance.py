"""Where results come from, and what is registered of them, as MLflow has it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

import gpm_tune
from gpm_tune.study.tracking.provenance import code_digest, environment_tags, requirements
from gpm_tune.study.tracking.tracker import Tracker
from gpm_tune.uris import URI


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


def test_a_curve_is_drawn_over_nfe_and_a_checkpoint_registered_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for tags in ({"step": "4"}, {"step": "4"}, {"step": "8"}):  # the second time the study is only continued
        with Tracker(tmp_path / "spool", URI(uri), "digits", str(tmp_path / "artifacts")) as tracker:
            run = tracker.open_run("key", name="trial 0", params={}, tags={})
            run.metrics(12, {"fid": 3.0})
            run.curve("fid", {2: 9.0, 4: 3.0})
            run.artifact("checkpoint/weights.safetensors", b"weights")
            run.register("digits", tags)
            run.end("FINISHED")
    client = MlflowClient(uri)
    versions = client.search_model_versions("name = 'digits'")
    assert sorted(version.tags["step"] for version in versions) == ["4", "8"]
    (source,) = {version.source for version in versions}
    assert Path(source.removeprefix("file://"), "weights.safetensors").read_bytes() == b"weights"
    history = client.get_metric_history(versions[0].run_id, "fid_by_nfe")
    assert {(point.step, point.value) for point in history} == {(2, 9.0), (4, 3.0)}
