"""Running the program as a user would, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from examples import study_data

COMMAND = [sys.executable, "-c", "from gpm_tune.cli import main; main()"]


def gpm_tune(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would."""
    command = [*COMMAND, *map(str, arguments), "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=home.parent, check=False)


def write_study(folder: Path, **changes: Any) -> Path:
    """The small study, with top-level keys replaced, in a file."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study_data(**changes)))
    return path
