"""Where a trial's checkpoints lie: in every session of its study that ran it.

checkpoints/session_000/trial_0007/checkpoint_000000/
checkpoints/session_000/trial_0007.1/checkpoint_000000/   handed out again, after a loss or a pause
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from gpm_tune import locations
from gpm_tune.training import checkpoint


def newest_first(latest: str) -> list[str]:
    """A trial's checkpoints from its latest known one down to the oldest.

    Damaged and half written ones are among them. Raises OSError where the storage is away.
    """
    return [latest, *(place for place in reversed(_all(latest)) if _age(place) < _age(latest))]


def is_one(folder: Path) -> bool:
    """Whether a folder is a trial's checkpoint, by its name and those above it."""
    session, trial, name = ("", "", "", *folder.parts)[-3:]
    return session.startswith("session_") and trial.startswith("trial_") and name.startswith("checkpoint_")


def candidates(latest: str) -> list[str]:
    """What a trial may go on from: the best choice first.

    Newer ones than the latest known come last: what was measured before them may not be known. They
    are all there is where the storage is ahead of an older copy of the study.
    """
    return newest_first(latest) + [place for place in _all(latest) if _age(place) > _age(latest)]


def drop_old(latest: str) -> None:
    """Delete those of a trial's checkpoints that are no longer needed."""
    found = newest_first(latest)
    whole = [index for index, place in enumerate(found) if _is_whole(place)][: checkpoint.KEPT]
    if len(whole) == checkpoint.KEPT:
        for place in found[whole[-1] + 1 :]:
            locations.delete(place)


def location(checkpoints: str, path: str) -> str:
    """Where a checkpoint lies, whose path from Ray leaves out which storage that is in."""
    return "/".join([checkpoints, *PurePosixPath(path).parts[-3:]])


def next_session(checkpoints: str, study_id: str) -> str:
    """The name of the folder of another session of a study.

    A continued trial's new checkpoints never meet its old ones there. Nor those of a study of this name
    that was deleted, of which nodes may have copies.
    """
    earlier = _sessions(checkpoints)
    number = int(earlier[-1].split("_")[1]) + 1 if earlier else 0
    return f"session_{number:03d}_{study_id[:8]}"


def trial_folder(number: int, attempt: int = 0) -> str:
    """The name of a trial's folder; attempt: how often it was handed out before in this session."""
    return f"trial_{number:04d}" + (f".{attempt}" if attempt else "")


def _all(latest: str) -> list[str]:
    """All checkpoints of a trial, oldest first."""
    base, _, trial, _ = latest.rsplit("/", 3)
    names = trial.partition(".")[0]
    found = [
        f"{base}/{session}/{attempt}/{name}"
        for session in _sessions(base)
        for attempt in locations.children(f"{base}/{session}")
        if attempt.partition(".")[0] == names
        for name in locations.children(f"{base}/{session}/{attempt}")
        if name.startswith("checkpoint_")
    ]
    return sorted(found, key=_age)


def _sessions(checkpoints: str) -> list[str]:
    return [name for name in locations.children(checkpoints) if name.startswith("session_")]


def _is_whole(place: str) -> bool:
    if locations.is_bucket(place):  # where a file is whole if it is there
        return {"checkpoint.json", *checkpoint.VOUCHED} <= set(locations.children(place))
    return checkpoint.is_whole(Path(place))


def _age(place: str) -> tuple[str, int, str]:
    """Sessions, attempts and checkpoints are numbered as they come."""
    session, trial, name = PurePosixPath(place).parts[-3:]
    return session, int(trial.partition(".")[2] or 0), name
