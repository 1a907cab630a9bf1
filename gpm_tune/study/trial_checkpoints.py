"""Where a trial's checkpoints lie: in every session of its study that ran it.

checkpoints/session_000/trial_0007/checkpoint_000000/
"""

from __future__ import annotations

from pathlib import Path


def newest_first(latest: Path) -> list[Path]:
    """A trial's checkpoint folders from its latest known one down to the oldest.

    Damaged and half written ones are among them.
    """
    trial = latest.parent
    sessions = trial.parent.parent
    older = (f for f in sessions.glob(f"session_*/{trial.name}/checkpoint_*") if _age(f) < _age(latest))
    return [latest, *sorted(older, key=_age, reverse=True)]


def _age(folder: Path) -> tuple[str, str]:
    """Sessions and checkpoints are numbered as they come."""
    return folder.parent.parent.name, folder.name
