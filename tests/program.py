"""Running the program as a user would, in a process of its own."""

from __future__ import annotations

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


def gpm_tune(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, from the folder that holds `home` where the command has one."""
    command = [*COMMAND, *map(str, arguments)]
    if home is not None:
        if arguments[0] in ("run", "train"):
            give_tables(home)
        command += ["--home", str(home)]
    folder = home.parent if home is not None and home.parent.is_dir() else None
    return subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=folder, check=False)


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
