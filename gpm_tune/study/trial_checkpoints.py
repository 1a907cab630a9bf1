"""Where a trial's checkpoints lie: in every session of its study that ran it.

checkpoints/session_000/trial_0007/checkpoint_000000/
checkpoints/session_000/trial_0007.1/checkpoint_000000/   handed out again, after a loss or a pause
"""

from __future__ import annotations

from pathlib import Path


def newest_first(latest: Path) -> list[Path]:
    """A trial's checkpoint folders from its latest known one down to the oldest.

    Damaged and half written ones are among them.
    """
    sessions, trial = latest.parents[2], latest.parent.name.partition(".")[0]
    found = [
        folder
        for name in (trial, f"{trial}.*")
        for folder in sessions.glob(f"session_*/{name}/checkpoint_*")
        if _age(folder) < _age(latest)
    ]
    return [latest, *sorted(found, key=_age, reverse=True)]


def trial_folder(number: int, attempt: int = 0) -> str:
    """The name of a trial's folder; attempt: how often it was handed out before in this session."""
    return f"trial_{number:04d}" + (f".{attempt}" if attempt else "")


def _age(folder: Path) -> tuple[str, int, str]:
    """Sessions, attempts and checkpoints are numbered as they come."""
    session, trial = folder.parent.parent.name, folder.parent.name
    return session, int(trial.partition(".")[2] or 0), folder.name
