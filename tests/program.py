"""Running the program as a user would, in a process of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import yaml
from examples import study_data
from filelock import FileLock

from gpm_tune.study.tracking.sender import make_tables

COMMAND = [sys.executable, "-c", "from gpm_tune.cli import main; main()"]
SECONDS = 500.0  # for one command

# Its processes begin where all imports are done: these take most of the time of a short command.
_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(["gpm_tune.cli", "gpm_tune.api", "mlflow", "ray.tune", "torchvision"])


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


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder."""
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place, name) for name in ("stdout", "stderr")]
        process = _warm.Process(target=_run, args=(folder, words, dict(os.environ), outputs))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, SECONDS)
        stdout, stderr = (file.read_text() for file in outputs)
    return subprocess.CompletedProcess(list(words), process.exitcode, stdout, stderr)


def _run(folder: Path, words: tuple[str, ...], environment: dict[str, str], outputs: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["gpm-tune", *words]
    from gpm_tune.cli import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()


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
