"""Nodes that cannot train, and spot nodes that are about to vanish: no trial is lost to them, or fails."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from accounting import EXPERIMENT, STUDY, check_accounts, check_values, write_chaos_study
from fleet import fleet_of
from mlflow.tracking import MlflowClient
from processes import Driver
from program import gpm_tune, write_study

from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Metadata(BaseHTTPRequestHandler):
    """AWS's instance metadata service, version 2."""

    leaves = False

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, "a-token")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
            self._answer(401, "")
        elif self.leaves and self.path == "/latest/meta-data/spot/instance-action":
            self._answer(200, json.dumps({"action": "terminate", "time": "2026-11-30T12:02:00Z"}))
        else:
            self._answer(404, "")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def metadata_service() -> Iterator[tuple[str, type[Metadata]]]:
    """The service of one machine: its address, and where its notice is set."""
    handler = type("OneMachine", (Metadata,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()


def test_trials_leave_a_spot_node_at_its_notice(tmp_path: Path) -> None:
    study = write_chaos_study(tmp_path, trials=2)
    with fleet_of(0, keeps_state=False) as fleet, metadata_service() as (address, machine):
        spot = fleet.add(env_vars={"AWS_EC2_METADATA_SERVICE_ENDPOINT": address})
        driver = Driver(
            study, tmp_path / "home", "--address", fleet.address, "--storage", str(tmp_path / "storage")
        )
        try:
            driver.start()
            driver.wait_for(lambda: driver.evaluations >= 2)
            machine.leaves = True
            driver.wait_for(lambda: "AWS is about to terminate its spot node" in driver.output, seconds=30)
            seen = driver.evaluations
            fleet.add()
            driver.wait_for(lambda: driver.evaluations > seen)
            assert spot not in fleet.busy(), "nothing is started on a node that is about to vanish"
            driver.finish(seconds=300)
        finally:
            driver.clear()
    assert "its process was lost" not in driver.output, "it left before its node vanished"
    storage = f"sqlite:///{tmp_path / 'home' / 'optuna.db'}"
    check_accounts(storage, MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"), trials=2)
    check_values(storage)


def test_trials_leave_when_their_process_is_asked_to_end_and_when_their_node_drains(tmp_path: Path) -> None:
    study = write_chaos_study(tmp_path, trials=1)
    with fleet_of(1, keeps_state=False) as fleet:
        driver = Driver(study, tmp_path / "home", "--address", fleet.address)
        try:
            driver.start()
            driver.wait_for(lambda: driver.evaluations >= 1)
            (node,) = fleet.busy()
            fleet.trials(node)[0].terminate()
            driver.wait_for(lambda: "its process was asked to end (SIGTERM)" in driver.output)
            seen = driver.evaluations
            driver.wait_for(lambda: driver.evaluations > seen)
            fleet.drain(node)
            driver.wait_for(lambda: "it is about to be taken away, as Ray was told" in driver.output)
            fleet.add()
            driver.finish(seconds=300)
        finally:
            driver.clear()
    assert "its process was lost" not in driver.output, "it left with a checkpoint"
    home = tmp_path / "home"
    check_accounts(f"sqlite:///{home}/optuna.db", MlflowClient(f"sqlite:///{home}/mlflow.db"), trials=1)


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A folder on a disk of its own that has no room."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], check=False
    ).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_node_with_a_full_disk_gets_no_more_trials_and_costs_none(tmp_path: Path) -> None:
    long = space.put(EXPERIMENT, {"training.steps": 10**6})
    study = write_study(tmp_path, name=STUDY, experiment=long, budget={"trials": 2})
    with fleet_of(1, keeps_state=False) as fleet, full_disk(tmp_path / "full") as full:
        sick = fleet.add(env_vars={"TMPDIR": str(full)})
        driver = Driver(study, tmp_path / "home", "--address", fleet.address)
        try:
            driver.start()
            driver.wait_for(lambda: f"{full} has 0.0 GB free; it gets no more trials" in driver.output)
            driver.wait_for(lambda: sick not in fleet.busy())
            seen = driver.evaluations
            driver.wait_for(lambda: driver.evaluations > seen + 9)
            assert sick not in fleet.busy(), "though a trial waits"
        finally:
            driver.clear()
    record = read_study(Home(tmp_path / "home").optuna_uri, STUDY)
    assert [trial.state for trial in record.trials] == ["running", "running"], "one waits for another node"


def test_nodes_whose_gpu_torch_cannot_use_end_the_study_and_not_its_trials(tmp_path: Path) -> None:
    study = write_chaos_study(tmp_path, trials=2, resources={"cpu": 1, "gpu": 1})
    with fleet_of(0, keeps_state=False) as fleet:
        fleet.add(num_gpus=1)
        result = gpm_tune("run", study, "--address", fleet.address, home=tmp_path / "home")
    assert result.returncode == 2, result.stdout
    assert "the study was interrupted: no node can train. The last one was node" in result.stderr
    assert "torch cannot train on its cuda" in result.stderr
    record = read_study(Home(tmp_path / "home").optuna_uri, STUDY)
    assert {trial.state for trial in record.trials} == {"interrupted"}
