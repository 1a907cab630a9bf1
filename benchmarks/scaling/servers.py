"""What a study talks to, on this machine: a cluster of Ray, MLflow's server, a bucket."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.scaling.cases import Case


@contextmanager
def ray_of(case: Case) -> Iterator[str]:
    """A Ray cluster whose nodes claim a CPU for each trial; its address."""
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": case.at_a_time // case.nodes}
    cluster = Cluster(True, head_node_args={**resources, "include_dashboard": False})
    try:
        for _ in range(1, case.nodes):
            cluster.add_node(**resources)
        yield cluster.address
    finally:
        cluster.shutdown()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """MLflow's server with one worker; its address and process."""
    arguments = ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    arguments += ["--artifacts-destination", str(folder / "artifacts")]
    with serving(["mlflow", "server", *arguments], folder / "mlflow.log", "/health") as served:
        yield served


@contextmanager
def bucket_server(folder: Path) -> Iterator[Callable[[], Counter[str]]]:
    """A bucket of S3; counts the requests that it took, by their kind."""
    log = folder / "bucket.log"
    with serving(["moto.server"], log, "/moto-api") as (address, _):
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        request = urllib.request.Request(f"{address}/scaling", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield lambda: Counter(map(kind, re.findall(r'"(\w+ \S+) HTTP', log.read_text())))


def kind(request: str) -> str:
    """What a request to a bucket is billed as."""
    method, _, path = request.partition(" ")
    return "LIST" if "list-type" in path else {"POST": "PUT", "HEAD": "GET"}.get(method, method)


@contextmanager
def serving(module: list[str], log: Path, path: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on 127.0.0.1 once it answers: its address and process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", *module, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(address + path, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
        yield address, process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
