"""What a running study shows: nothing to other machines, and nothing to other users of this one."""

from __future__ import annotations

import encodings.idna  # noqa: F401 (the second user may not be able to read the standard library)
import ipaddress
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import psutil
import pytest
from examples import POINTS
from program import COMMAND, write_study

from gpm_tune.study.definition import space

pytestmark = pytest.mark.slow

NOBODY = 65534
PLANTED = ("planted1", "planted2")
TRACKING = "http://user:planted1%2Fplanted2@127.0.0.1:1"  # nobody answers there
ENDLESS = space.put(POINTS, {"training.steps": 10**6, "evaluation.every": 500, "evaluation.nfe": []})
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a second user")


@dataclass(frozen=True)
class Running:
    """A study that runs, of a user who lets everybody read what he writes."""

    process: subprocess.Popen[str]
    home: Path  # of the user
    session: Path  # of Ray
    token: Path
    said: list[str]  # lines, so far
    agent: str  # the URL at which Ray's agent takes jobs


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to others
    place.chmod(0o755)
    (place / ".ray").mkdir()
    (place / ".ray" / "auth_token").write_text("a-token-of-another-cluster")
    (place / ".ray" / "auth_token").chmod(0o644)
    path = write_study(place, experiment=ENDLESS, budget={"trials": 1}, resources={"cpu": 1, "concurrent": 1})
    process = subprocess.Popen(
        [*COMMAND, "run", str(path), "--home", str(place / "home"), "--tracking-uri", TRACKING, "--verbose"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=0,
        env=os.environ | {"HOME": str(place), "TMPDIR": f"/tmp/{'long' * 30}"},
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "trial 0: step 500/" in line:
                break
        else:
            pytest.fail("".join(said))
        raylet = next(p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "raylet")
        token = Path(raylet.environ()["RAY_AUTH_TOKEN_PATH"])
        session = (token.parent / "r" / "session_latest").resolve()
        port = ""
        while not port:  # the agent writes it at its leisure
            assert process.poll() is None
            time.sleep(0.2)
            port = next((file.read_text() for file in session.glob("dashboard_agent_listen_port_*")), "")
        yield Running(process, place, session, token, said, f"http://127.0.0.1:{port}/api/job_agent/jobs/")
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(place)


@pytest.fixture
def neighbour() -> Iterator[Pool]:
    """A process of another user of the machine."""
    with multiprocessing.get_context("fork").Pool(1, become_nobody) as pool:
        yield pool


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def test_it_listens_on_this_machine_only(running: Running) -> None:
    found = listening(psutil.Process(running.process.pid))
    assert len(found) >= 3, "Ray's processes were seen"
    assert {address: name for address, name in found.items() if not is_loopback(address[0])} == {}


@needs_root
def test_nobody_else_reads_a_token(running: Running, neighbour: Pool) -> None:
    for token in (running.token, running.home / ".ray" / "auth_token"):
        assert token.stat().st_mode & 0o777 == 0o600
        with pytest.raises(PermissionError):
            neighbour.apply(Path.read_text, (token,))


@needs_root
def test_nobody_else_submits_a_job(running: Running, neighbour: Pool) -> None:
    if "127.0.0.1:-1/" in running.agent:
        pytest.skip("the agent's port was taken by another Ray: this one takes no jobs of anybody")
    for token in ("", "a-token-of-another-cluster"):
        assert neighbour.apply(submit, (running.agent, token)) in (401, 403)
    assert submit(running.agent, running.token.read_text()) == 200, "its owner's token is taken"


@needs_root
def test_nobody_else_moves_its_sockets(running: Running, neighbour: Pool) -> None:
    for place in (running.session / "sockets" / "raylet", running.session / "sockets", running.token.parent):
        assert place.exists()
        with pytest.raises(PermissionError):
            neighbour.apply(place.rename, (place.with_name("moved"),))


def test_no_process_log_or_file_has_the_password_of_its_store(running: Running) -> None:
    driver = psutil.Process(running.process.pid)
    texts = [" ".join(process.cmdline()) for process in [driver, *driver.children(recursive=True)]]
    texts += running.said
    for folder in (running.session, running.home):
        texts += [f.read_bytes().decode(errors="replace") for f in folder.rglob("*") if f.is_file()]
    assert any("http://***@127.0.0.1:1" in text for text in texts)
    assert [text for text in texts if any(planted in text for planted in PLANTED)] == []


def test_its_home_follows_the_umask(running: Running) -> None:
    written = [
        file for file in (running.home / "home").rglob("*") if ".db" not in file.name
    ]  # SQLite's: 0644
    assert {"study.yaml", "checkpoint.json"} <= {file.name for file in written}
    assert {file: oct(file.stat().st_mode) for file in written if file.stat().st_mode & 0o666 != 0o666} == {}


def test_what_its_folder_holds_ends_with_it(running: Running) -> None:
    running.process.send_signal(signal.SIGINT)
    assert running.process.stdout is not None
    said = running.process.stdout.read()
    assert running.process.wait() == 130, said
    assert "continue with" in said
    assert not any(planted in said for planted in PLANTED)
    left = [path for path in running.token.parent.rglob("*") if not path.is_dir()]
    assert left == [], "a process of Ray's that ends late may make empty folders"


def submit(agent: str, token: str) -> int:
    """Ask Ray's agent to run a job; the HTTP status of its answer."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(agent, json.dumps({"entrypoint": "true"}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


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


def is_loopback(text: str) -> bool:
    """Whether only this machine reaches an address; in IPv6 that of IPv4 has a form of its own."""
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
