"""A Ray cluster of several nodes on this machine, whose nodes can vanish, freeze, or lose their head."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from ray._private.node import Node
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

HEALTH_CHECK = {
    # A silent node is declared dead after some 5 s; Ray's own values take a minute.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}


class Fleet:
    """A head without CPUs, and worker nodes of one CPU each."""

    def __init__(self, workers: int) -> None:
        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def add(self, **options: Any) -> Node:
        """Let one more worker node join. options: of `Cluster.add_node`."""
        return self._cluster.add_node(num_cpus=1, **options)

    def busy(self) -> list[Node]:
        """The nodes that train."""
        return [node for node in self._cluster.worker_nodes if self.trials(node)]

    def trials(self, node: Node) -> list[psutil.Process]:
        """The processes of a node that train."""
        return list(filter(_trains, _processes(node)))

    def drain(self, node: Node) -> None:
        """Tell Ray that a node is about to be taken away, as `ray start --block` does at SIGTERM."""
        why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + 30) * 1000)
        GcsClient(self.address).drain_node(node.node_id, why, "SIGTERM", deadline)

    def vanish(self, node: Node) -> None:
        """Kill all processes of a node, and let another one join in its place."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.add()

    @contextmanager
    def frozen(self, node: Node) -> Iterator[None]:
        """Within the block a node does nothing, as if no network led to it; then another one replaces it.

        The cluster has declared it dead by the end of the block, so it must end by itself.
        """
        processes = list(_processes(node))
        for process in processes:
            process.suspend()
        yield
        for process in processes:
            process.resume()
        psutil.wait_procs(processes[:1], timeout=30)
        _wait(lambda: not any(map(_trains, processes)))
        self.vanish(node)

    def lose_head(self) -> None:
        """Kill the process on the head that knows the cluster."""
        self._cluster.head_node.kill_gcs_server()

    def restart_head(self) -> None:
        """Start it again, on the same port, with what it had kept on disk."""
        self._cluster.head_node.start_gcs_server()

    def shutdown(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


@contextmanager
def fleet_of(workers: int, *, keeps_state: bool) -> Iterator[Fleet]:
    """A fleet for the time of the block; with state on disk its head survives a restart."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))  # sockets need a short path
    state = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "state")}
    settings = {"RAY_TMPDIR": str(folder), **HEALTH_CHECK, **(state if keeps_state else {})}
    with patch.dict(os.environ, settings):
        fleet = Fleet(workers)
        try:
            yield fleet
        finally:
            fleet.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _processes(node: Node) -> Iterator[psutil.Process]:
    """A node's raylet, and all that it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    yield raylet
    yield from raylet.children(recursive=True)


def _trains(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::") and "Trainable" in process.name()
    except psutil.NoSuchProcess:
        return False


def _wait(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
