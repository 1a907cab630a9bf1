"""Where a trial's checkpoints lie: in every session of its study that ran it.

checkpoints/session_000/trial_0007/checkpoint_000000/
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gpm_tune.training import checkpoint


def newest_first(latest: Path) -> list[Path]:
    """A trial's checkpoint folders from its latest known one down to the oldest.

    Damaged and half written ones are among them.
    """
    return [latest, *(folder for folder in _all(latest) if _age(folder) < _age(latest))]


def drop_old(latest: Path) -> None:
    """Delete those checkpoints of a trial's earlier sessions that are no longer needed.

    Those of its present session are Tune's to delete.
    """
    for folder in checkpoint.no_longer_needed(newest_first(latest)):
        if folder.parent != latest.parent:
            shutil.rmtree(folder, ignore_errors=True)


def _all(latest: Path) -> list[Path]:
    trial = latest.parent
    sessions = trial.parent.parent
    return sorted(sessions.glob(f"session_*/{trial.name}/checkpoint_*"), key=_age, reverse=True)


def _age(folder: Path) -> tuple[str, str]:
    """Sessions and checkpoints are numbered as they come."""
    return folder.parent.parent.name, folder.name
