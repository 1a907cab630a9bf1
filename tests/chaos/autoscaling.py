"""A Ray cluster on this machine whose nodes Ray's own autoscaler starts and ends: from none, back to none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray._private.services import get_node_ip_address

HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # as Ray's fake provider takes them for granted
NODE_TYPES = {
    HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}},
    "spot": {
        "resources": {"CPU": 1},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
        "labels": {"gpm-tune/usd-per-hour": "0.50"},
    },
}
IDLE_MINUTES = 0.1


class Autoscaling:
    """A head without CPUs, whose autoscaler (v2) starts processes in place of machines."""

    def __init__(self, folder: Path, provider: str, **changes: Any) -> None:
        """provider: the class, by its whole name, that starts nodes. changes: of the cluster's file."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self.address = f"{get_node_ip_address()}:{port}"
        self._temp = folder / "ray"
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(self._config(provider) | changes))
        environment = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_AUTH_MODE": "disabled",  # or a head asks for a token wherever its user has one
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        ray = Path(sys.executable).with_name("ray")
        command = [ray, "start", "--head", f"--port={port}", "--num-cpus=0", "--num-gpus=0"]
        command += ["--include-dashboard=false", f"--temp-dir={self._temp}", "--disable-usage-stats"]
        command += [f"--autoscaling-config={config}", "--block"]
        self._log = (folder / "head.log").open("w+")
        self._head = subprocess.Popen(
            command, env=os.environ | environment, stdout=self._log, stderr=self._log, text=True
        )

    def _config(self, provider: str) -> dict[str, Any]:
        return {
            "cluster_name": "fake",
            "max_workers": 2,
            "idle_timeout_minutes": IDLE_MINUTES,
            "provider": {
                "type": "external",
                "module": provider,
                "head_node_id": HEAD,
                "gcs_address": self.address,
                "disable_node_updaters": True,
                "launch_multiple": True,
            },
            "auth": {"ssh_user": "nobody"},
            "head_node_type": HEAD_TYPE,
            "available_node_types": NODE_TYPES,
            "file_mounts_sync_continuously": False,
        } | {
            key: {} if key == "file_mounts" else []
            for key in (
                *("file_mounts", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
                *("initialization_commands", "setup_commands", "head_setup_commands"),
                *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
            )
        }

    @property
    def monitor(self) -> str:
        """What the autoscaler has logged."""
        logs = self._temp.glob("session_latest/logs/monitor.log")
        return "".join(log.read_text(errors="replace") for log in logs)

    def workers(self) -> int:
        """How many nodes run besides the head."""
        return sum("raylet" in name for name in map(_name, self._processes())) - 1

    def wait_for_workers(self, number: int, seconds: float = 60) -> None:
        """Wait until so many nodes run besides the head."""
        end = time.monotonic() + seconds
        while self.workers() != number:
            assert time.monotonic() < end, (
                f"{self.workers()} nodes run, not {number}:\n{self.monitor[-5000:]}"
            )
            time.sleep(0.2)

    def shutdown(self) -> None:
        """End the head, and every node that it has started."""
        processes = self._processes()
        self._head.send_signal(signal.SIGTERM)
        psutil.wait_procs(processes, timeout=15)
        for process in processes:
            if process.is_running():
                process.kill()
        self._head.wait()
        self._log.close()

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self._head.pid).children(recursive=True)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:  # it has ended since it was listed
        return ""


@contextmanager
def autoscaling(provider: str, **changes: Any) -> Iterator[Autoscaling]:
    """Such a cluster for the time of the block."""
    folder = Path(tempfile.mkdtemp(prefix="zero-"))  # sockets need a short path
    cluster = Autoscaling(folder, provider, **changes)
    try:
        cluster.wait_for_workers(0)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
