"""A study's driver and an MLflow server as processes that can be killed, with whatever they leave behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from program import Started, give_tables

MARK = "GPM_TUNE_TEST_PROCESS"


class Driver:
    """`gpm-tune run` of a study, started again as often as it is killed."""

    def __init__(self, study: Path, home: Path, *options: str) -> None:
        if "--tracking-uri" not in options:
            give_tables(home)
        self._words = ["run", str(study), "--home", str(home), *options]
        self._folder = home.parent
        self._mark = uuid.uuid4().hex  # in the environment of all that the driver starts
        self._seen: set[psutil.Process] = set()
        self._process: Started | None = None
        self.lines: list[str] = []

    def start(self) -> None:
        """Start, or continue, the study."""
        self._process = Started(*self._words, folder=self._folder, **{MARK: self._mark})
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.add(psutil.Process(self._process.pid))
        threading.Thread(target=self._read, args=[self._process], daemon=True).start()

    def _read(self, process: Started) -> None:
        for line in process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        """What all the processes printed."""
        return "".join(self.lines)

    @property
    def evaluations(self) -> int:
        """How many evaluations were printed."""
        return sum(": step " in line for line in self.lines)

    def wait_for(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait until something holds, while the driver runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self._process is not None
            assert self._process.poll() is None, f"the study ended too early:\n{self.output}"
            assert time.monotonic() < end, f"waited in vain:\n{self.output}"
            time.sleep(0.1)

    def wait(self, seconds: float) -> int:
        """Wait for the end of the driver; its exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def finish(self, seconds: float) -> None:
        """Wait for the end of the study, which must be a good one."""
        assert self.wait(seconds) == 0, self.output

    def kill(self) -> None:
        """Kill the driver alone, and wait for what Ray does about it; then clear away what lingers."""
        assert self._process is not None
        self._look()
        self._process.kill()
        self._process.wait()
        end = time.monotonic() + 5
        while self._look() and time.monotonic() < end:
            time.sleep(0.2)
        self.clear()

    def clear(self) -> None:
        """Kill every process that this driver started, directly or not, and itself."""
        for process in self._look():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait()

    def _look(self) -> list[psutil.Process]:
        """The processes that this driver started, directly or not, and itself.

        Ray's workers overwrite their environment: they are known by their parents, while these live.
        """
        marked = [process for process in psutil.process_iter() if _mark_of(process) == self._mark]
        for process in [*marked, *self._seen]:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen |= {process, *process.children(recursive=True)}
        self._seen = {process for process in self._seen if _is_alive(process)}
        return list(self._seen)

    def trials(self) -> list[psutil.Process]:
        """The processes that train."""
        assert self._process is not None
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name().startswith("ray::") and "Trainable" in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def kill_a_trial(self, chance: random.Random) -> None:
        """Kill one of the processes that train."""
        self.wait_for(self.trials)
        with contextlib.suppress(psutil.NoSuchProcess):
            chance.choice(self.trials()).kill()


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Server:
    """A real MLflow server on 127.0.0.1, always with the same store and port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, in a process group of its own."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self._port)]
        command += ["--host", "127.0.0.1", "--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "server-artifacts")]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, seconds: float = 240) -> None:
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while not self._answers():
            assert time.monotonic() < end, (self._folder / "server.log").read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it with all its processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
