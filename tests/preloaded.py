"""The program, or other code, in processes that begin where its imports are done.

These take most of the time of a short command. A process has imported everything for all tests of a run, and
forks one for each call; it ends with the tests. This file is that process, and what calls it.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = [
    "matplotlib.figure",
    "mlflow",
    "optuna",
    "pandas",
    "plotly.graph_objects",
    "pytest",
    "ray.tune",
    "rich.table",
    "scipy.special",
    "scipy.stats",
    "sklearn.datasets",
    "torchvision",
    "typer",
]
MODULES = [
    "analysis.report",
    "analysis.subjects",
    "api",
    "cli",
    "study.cluster.doctor",
    "study.running.manage",
    "study.running.ray_adapters",
    "study.running.run",
    "study.running.single",
    "study.views.experiments",
    "study.views.forecast",
]
IMPORTED = {
    "libraries": LIBRARIES,  # the program looks for plug-ins when it is imported
    "program": [*LIBRARIES, *(f"gpm_tune.{name}" for name in MODULES)],
}
PROGRAM = "from gpm_tune.cli import main; main()"
LOOK_EVERY = 2.0  # seconds between looks whether the tests still run
OWNER = "GPM_TUNE_TESTS"  # the process that runs the tests, or that has started those that do
os.environ.setdefault(OWNER, str(os.getpid()))
_started: list[subprocess.Popen[bytes]] = []


class Call:
    """A process that runs Python code."""

    def __init__(
        self,
        words: Sequence[str],
        folder: str | Path,
        environment: Mapping[str, str],
        files: Sequence[int],
        code: str = PROGRAM,
        imported: str = "program",
    ) -> None:
        """words: its arguments. files: its standard input, output and error. imported: a key of IMPORTED."""
        self._line = _connect(imported)
        call = {"words": words, "folder": str(folder), "environment": dict(environment), "code": code}
        request = json.dumps(call).encode()
        socket.send_fds(self._line, [len(request).to_bytes(8, "big")], files)
        self._line.sendall(request)
        self.pid = self._answer()

    def ended(self, seconds: float | None) -> int | None:
        """Its exit code, once it has ended; None where it has not within some seconds."""
        if not select.select([self._line], [], [], seconds)[0]:
            return None
        return self._answer()

    def _answer(self) -> int:
        found = self._line.recv(8)
        assert found, "the process that forks others was killed"
        return int.from_bytes(found, "big", signed=True)


def _connect(imported: str) -> socket.socket:
    """A connection to the process that has this imported, which is started if it is not there."""
    address = f"{tempfile.gettempdir()}/gpm-tune-tests-{os.environ[OWNER]}-{imported}"
    with open(f"{address}.lock", "w") as lock:  # noqa: PTH123 (a client has no time for pathlib)
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(address)
        except OSError:
            started = subprocess.Popen(
                [sys.executable, __file__, imported, address], stdout=subprocess.PIPE, start_new_session=True
            )
            _started.append(started)
            assert started.stdout is not None
            assert started.stdout.read() == b"ready", "the program cannot be imported"
            line.connect(address)
    return line


def _next_call(imported: str, address: str) -> str:
    """Serve calls; returns, in a process of its own for each of them, the code that is to be run."""
    for name in IMPORTED[imported]:
        importlib.import_module(name)
    gc.freeze()  # or each process would copy what it never changes
    owner = int(os.environ[OWNER])
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.write(1, b"ready")
        with open(os.devnull, "r+") as nowhere:  # noqa: PTH123
            for number in range(3):
                os.dup2(nowhere.fileno(), number)
        while _runs(owner):
            if not select.select([listener], [], [], LOOK_EVERY)[0]:
                continue
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _fork(line)
            line.close()
    for file in (address, f"{address}.lock"):
        Path(file).unlink()
    os._exit(0)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _fork(line: socket.socket) -> str:
    """Returns in the process that is to run the code; this one waits for its end, to tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(line, 8, 3)
    with line.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(size, "big")))
    process = os.fork()
    if process:
        for file in files:
            os.close(file)
        line.sendall(process.to_bytes(8, "big", signed=True))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        line.sendall(code.to_bytes(8, "big", signed=True))
        os._exit(0)
    line.close()
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["gpm-tune", *request["words"]]
    code: str = request["code"]
    return code


def _run(code: str) -> None:
    """Run code, and end as an interpreter does, without the seconds in which that would clear all modules."""
    status: object = 1
    try:
        exec(code, {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    if not isinstance(status, int):
        print(status, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # where the program is
    _run(_next_call(*sys.argv[1:]))
