"""The CPU cores that this process may use, which may be fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/")


def usable_cores() -> int:
    """The cores to which this process is bound, or fewer where a control group gives it less time.

    Slurm and `taskset` bind processes to cores; Docker and Kubernetes limit their time.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = quota()
    return bound if limit is None else max(1, min(bound, int(limit)))


def quota(root: Path = ROOT) -> float | None:
    """The CPU time that this process's control groups, of version 1 or 2, allow, in cores; None for any.

    root: of the file system in which /proc/self/cgroup and /sys/fs/cgroup are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    mount = root / "sys/fs/cgroup"
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += [_limit_v2(folder) for folder in _upwards(mount, path)]
        elif "cpu" in controllers.split(","):
            limits += [_limit_v1(folder) for folder in _upwards(mount / controllers, path)]
            limits += [_limit_v1(folder) for folder in _upwards(mount / "cpu", path)]
    return min((limit for limit in limits if limit is not None), default=None)


def _upwards(mount: Path, path: str) -> list[Path]:
    """A group's folder and those above it, each of which may limit it.

    A container may see its own group only, at the mount, under a path of the host: the folders between are
    not there then.
    """
    group = mount / path.lstrip("/")
    return [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]


def _limit_v2(folder: Path) -> float | None:
    try:
        allowed, period = (folder / "cpu.max").read_text().split()
        return None if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        return None


def _limit_v1(folder: Path) -> float | None:
    try:
        allowed = int((folder / "cpu.cfs_quota_us").read_text())
        return None if allowed < 0 else allowed / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
