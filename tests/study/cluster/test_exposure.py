"""What a study on one machine shows to others: nothing listens beyond 127.0.0.1."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path

import psutil
import pytest
from examples import POINTS
from program import COMMAND, write_study

from gpm_tune.study.definition import space

pytestmark = pytest.mark.slow

LONG = space.put(POINTS, {"training.steps": 4000, "evaluation.every": 500, "evaluation.nfe": []})


def listening(process: psutil.Process) -> dict[tuple[str, int], str]:
    """The addresses at which a process, and all that it has started, take calls; and which of them does."""
    found = {}
    for member in [process, *process.children(recursive=True)]:
        try:
            for connection in member.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN or not connection.raddr:
                    found[connection.laddr.ip, connection.laddr.port] = member.name()
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_running_study_listens_on_this_machine_only(tmp_path: Path) -> None:
    path = write_study(tmp_path, experiment=LONG, budget={"trials": 2}, resources={"cpu": 1, "concurrent": 1})
    command = [*COMMAND, "run", str(path), "--home", str(tmp_path / "home")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "trial 0: step 500/" in line:
            break
    found = listening(psutil.Process(process.pid))
    rest = process.stdout.read()
    assert process.wait(120) == 0, rest
    assert len(found) >= 3, "Ray's processes were seen"
    assert {address: name for address, name in found.items() if not is_loopback(address[0])} == {}


def is_loopback(text: str) -> bool:
    """Whether only this machine reaches an address; in IPv6 that of IPv4 has a form of its own."""
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
