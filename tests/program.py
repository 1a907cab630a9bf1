"""Running the program as a user would, in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import yaml
from examples import study_data
from filelock import FileLock
from preloaded import PROGRAM, Call

from gpm_tune.study.tracking.sender import make_tables

COMMAND = [sys.executable, "-c", PROGRAM]  # with all its imports
SECONDS = 500.0  # for one command


def gpm_tune(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, from the folder that holds `home` where the command has one."""
    words = [str(argument) for argument in arguments]
    if home is None:
        return call(Path.cwd(), *words)
    is_new = words[0] in ("run", "train") and home.parent.is_dir() and not home.exists()
    if is_new:
        give_tables(home)
    done = call(home.parent if home.parent.is_dir() else Path.cwd(), *words, "--home", str(home))
    if is_new and [file.name for file in home.iterdir()] == ["mlflow.db"]:
        shutil.rmtree(home)  # the program itself has left nothing
    return done


def call(
    folder: Path, *words: str, code: str = PROGRAM, imported: str = "program", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program, or other code, in a folder."""
    with tempfile.TemporaryDirectory() as place:
        said, errors = Path(place, "stdout"), Path(place, "stderr")
        with Path(os.devnull).open() as nothing, said.open("a") as out, errors.open("a") as err:
            files = [file.fileno() for file in (nothing, out, err)]
            process = Call(words, folder, {**os.environ, **environment}, files, code, imported)
        code = process.ended(SECONDS)
        if code is None:
            os.kill(process.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(words, SECONDS)
        return subprocess.CompletedProcess(list(words), code, said.read_text(), errors.read_text())


class Started:
    """The program, or other code, in a process and a process group of its own; used as a `subprocess.Popen`.

    What it says, errors included, is in `stdout`.
    """

    def __init__(
        self, *words: object, folder: Path | None = None, code: str = PROGRAM, **environment: str
    ) -> None:
        said, saying = os.pipe()
        with Path(os.devnull).open() as nothing, os.fdopen(saying, "w"):
            files = [nothing.fileno(), saying, saying]
            variables = {**os.environ, **environment}
            self._call = Call([*map(str, words)], folder or Path.cwd(), variables, files, code)
        self.pid = self._call.pid
        self.stdout = os.fdopen(said)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("gpm-tune", timeout or 0)
        return code

    def communicate(self, timeout: float = SECONDS) -> tuple[str, None]:
        """Wait for its end; the rest of what it says."""
        rest: list[str] = []
        reader = threading.Thread(target=lambda: rest.append(self.stdout.read()), daemon=True)
        reader.start()
        self.wait(timeout)
        reader.join(timeout)
        return "".join(rest), None

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            self.returncode = self._call.ended(seconds)
        return self.returncode


@cache
def empty_tables() -> Path:
    """A database in which MLflow has made its tables, which costs it seconds, once for all tests."""
    file = Path(tempfile.gettempdir(), f"gpm-tune-tests-mlflow-{mlflow.__version__}.db")
    with FileLock(f"{file}.lock"):
        if not file.exists():
            make_tables(file)
    return file


def give_tables(home: Path) -> None:
    """Let a new home begin with MLflow's tables."""
    if not (home / "mlflow.db").exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(empty_tables(), home / "mlflow.db")


def write_study(folder: Path, **changes: Any) -> Path:
    """The small study, with top-level keys replaced, in a file."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study_data(**changes)))
    return path
