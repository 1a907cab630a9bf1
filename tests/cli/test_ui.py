"""`gpm-tune ui`, looked at with a real browser."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import look_at, needs_browser
from mlflow.tracking import MlflowClient

from gpm_tune.study.storage.home import Home

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture
def server(finished: Path) -> Iterator[str]:
    """The address of `gpm-tune ui` on the finished study."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "from gpm_tune.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "ui", "--port", str(port), "--home", str(finished)],
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=1)
        except OSError:
            assert process.poll() is None, "the server ended"
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{address} never answered")


def page(address: str, profile: Path) -> str:
    return look_at(address, profile, "--window-size=1600,1000", "--virtual-time-budget=30000").stdout


def test_the_browser_shows_the_studys_trials_with_their_metric(
    server: str, finished: Path, tmp_path: Path
) -> None:
    client = MlflowClient(Home(finished).tracking_uri.secret())
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert children
    experiment_page = f"{server}/#/experiments/{experiment.experiment_id}/runs"
    best_first = "?searchFilter=metrics.fid%20%3E%200&orderByKey=metrics.%60fid%60&orderByAsc=true"
    for attempt in range(3):  # a busy machine may not have drawn the table in time
        table = page(experiment_page + best_first, tmp_path / f"table{attempt}")
        if children[0].info.run_name in table:
            break
    for number, run in enumerate(children):
        assert run.info.run_name in table
        detail = page(f"{experiment_page}/{run.info.run_id}", tmp_path / str(number))
        assert "fid/nfe_2" in detail
        assert f"{run.data.metrics['fid']:.6f}"[:7] in detail, "the value as MLflow shows it"
