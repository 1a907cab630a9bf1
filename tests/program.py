"""Running the program as a user would, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from examples import study_data

COMMAND = [sys.executable, "-c", "from gpm_tune.cli import main; main()"]


def gpm_tune(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, from the folder that holds `home` where the command has one."""
    command = [*COMMAND, *map(str, arguments)]
    if home is not None:
        command += ["--home", str(home)]
    folder = home.parent if home is not None and home.parent.is_dir() else None
    return subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=folder, check=False)


def write_study(folder: Path, **changes: Any) -> Path:
    """The small study, with top-level keys replaced, in a file."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study_data(**changes)))
    return path
