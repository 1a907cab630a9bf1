"""A job's log, followed on a real job server through connections that are lost."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import join

import pytest
import ray.cluster_utils
from ray.job_submission import JobSubmissionClient

from gpm_tune.errors import UserError
from gpm_tune.study.cluster import remote
from gpm_tune.study.cluster.remote import Cluster

pytestmark = pytest.mark.slow

LINES = 3000
# Writes lines with characters of several bytes, half of them before the file `go` is there, the rest after.
JOB = """
import sys, time
from pathlib import Path
for number in range({lines}):
    if number == {lines} // 2:
        while not Path({go!r}).exists():
            time.sleep(0.1)
    print(f"line {{number}}: größer", end="\\n" if number % 7 else " ", flush=True)
sys.exit(5)
"""


class Wire:
    """A port of this machine that leads to another one, counts what comes back, and can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.received = 0  # bytes
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                return
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target, source is far), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(2**16):
                self.received += len(data) if counts else 0
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def cut(self) -> None:
        """End all connections, and take no more."""
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Wired(Cluster):
    """A cluster that is reached through wires, where others are through SSH."""

    def __init__(self, file: Path, port: int) -> None:
        super().__init__(file)
        self._port = port
        self.wires: list[Wire] = []

    @contextmanager
    def tunnel(self, port: int, here: int = 0) -> Iterator[int]:
        del port, here
        self.wires.append(Wire(self._port))
        yield self.wires[-1].port
        self.wires[-1].cut()


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in (one, other)]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a job server."""
    found, agents = free_ports()
    arguments = {
        "num_cpus": 1,
        "include_dashboard": True,
        "dashboard_port": found,
        "dashboard_host": "127.0.0.1",
        "dashboard_agent_listen_port": agents,  # another Ray of this machine may have the usual one
    }
    cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args=arguments)
    try:
        wait_for_agent(JobSubmissionClient(f"http://127.0.0.1:{found}"))
        yield found
    finally:
        cluster.shutdown()


def wait_for_agent(client: JobSubmissionClient) -> None:
    """Until the server takes jobs, some seconds after it answers."""
    end = time.monotonic() + 120
    while True:
        try:
            client.submit_job(entrypoint="true")
        except RuntimeError:
            assert time.monotonic() < end
            time.sleep(0.5)
        else:
            return


@pytest.fixture
def cluster(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Wired:
    monkeypatch.setattr(remote, "PAUSE", 0.2)
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster_name: wired\nprovider: {type: local}\n")
    return Wired(file, port)


def start_job(port: int, go: Path) -> tuple[str, str]:
    """A job, and the log that it will have written."""
    program = JOB.format(lines=LINES, go=str(go))
    job = JobSubmissionClient(f"http://127.0.0.1:{port}").submit_job(
        entrypoint=join([sys.executable, "-c", program])
    )
    lines = (f"line {number}: größer" + ("\n" if number % 7 else " ") for number in range(LINES))
    return job, "".join(lines)


def follow(cluster: Wired, job: str, shown: list[str]) -> tuple[threading.Thread, list[int]]:
    """Follow a job in a thread; its exit code comes into the list."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cluster.follow(job, shown.append)), daemon=True)
    thread.start()
    return thread, codes


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_each_part_of_a_log_is_shown_once_through_lost_connections(
    cluster: Wired, port: int, tmp_path: Path
) -> None:
    job, log = start_job(port, tmp_path / "go")
    shown: list[str] = []
    thread, codes = follow(cluster, job, shown)
    for number in range(2):
        wait_until(lambda number=number: len(cluster.wires) > number)
        wait_until(lambda number=number: cluster.wires[number].received > 10_000)
        cluster.wires[number].cut()
    (tmp_path / "go").touch()
    thread.join(120)
    assert codes == [5]
    assert "".join(shown).split("Running entrypoint")[-1].endswith(log)
    assert "".join(shown).count("line 7:") == 1
    assert len(cluster.wires) >= 3


def test_a_log_is_fetched_once_while_the_connection_stays(cluster: Wired, port: int, tmp_path: Path) -> None:
    job, log = start_job(port, tmp_path / "go")
    shown: list[str] = []
    thread, codes = follow(cluster, job, shown)
    wait_until(lambda: sum(map(len, shown)) > len(log) // 3)
    time.sleep(4)  # in which the log used to be fetched twice more
    (tmp_path / "go").touch()
    thread.join(120)
    assert codes == [5]
    assert sum(wire.received for wire in cluster.wires) < 1.5 * len(log.encode()) + 20_000


def test_a_job_that_the_cluster_does_not_know_is_said(cluster: Wired) -> None:
    with pytest.raises(UserError, match=r"does not exist.*started again"):
        cluster.follow("nothing", print)
