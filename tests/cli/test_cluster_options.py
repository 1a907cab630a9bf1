"""Options that a command on a cluster would not heed are refused, before anything is asked of the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import gpm_tune, write_study

HEED = {
    "run": ("--home", "--storage", "--tracking-uri"),
    "status": ("--home",),
    "stop": ("--home",),
    "ui": ("--home", "--tracking-uri"),
    "doctor": ("--home", "--storage", "--tracking-uri"),
    "fetch": ("--storage",),
}
SETTINGS = {
    "--home": "GPM_TUNE_HOME",
    "--storage": "GPM_TUNE_STORAGE",
    "--tracking-uri": "MLFLOW_TRACKING_URI",
}


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    """Of a cluster that does not exist."""
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster_name: none\nprovider: {type: local, head_ip: 127.0.0.1, worker_ips: []}\n")
    return file


@pytest.mark.parametrize(
    ("command", "option"), [(name, option) for name, all_ in HEED.items() for option in all_]
)
def test_places_are_those_of_the_clusters_file(
    command: str, option: str, cluster_file: Path, tmp_path: Path
) -> None:
    subject = {"run": [write_study(tmp_path)], "stop": ["name"], "fetch": ["name"]}.get(command, [])
    result = gpm_tune(command, *subject, option, "elsewhere", "--cluster", cluster_file)
    assert result.returncode == 2, result.stdout + result.stderr
    error, help_line = result.stderr.splitlines()
    assert error.startswith(f"error: {option} cannot be combined with --cluster")
    assert help_line == f"help: leave {option} out, or set {SETTINGS[option]} in {cluster_file}"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("option", [["--dry-run"], ["--address", "auto"]])
def test_a_study_runs_at_one_place(option: list[str], cluster_file: Path, tmp_path: Path) -> None:
    result = gpm_tune("run", write_study(tmp_path), *option, "--cluster", cluster_file)
    assert result.returncode == 2
    assert f"error: {option[0]} cannot be combined with --cluster" in result.stderr
    assert "help: " in result.stderr
