"""How many cores this process may use: bound to some, or limited by control groups of either version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import call

from gpm_tune.cores import quota, usable_cores

COUNT = "from gpm_tune.cores import usable_cores; print(usable_cores())"


def test_a_process_that_is_bound_to_one_core_counts_one() -> None:
    core = str(min(os.sched_getaffinity(0)))
    bound = subprocess.run(
        ["taskset", "-c", core, sys.executable, "-c", COUNT], capture_output=True, text=True, check=True
    )
    assert bound.stdout == "1\n"


@pytest.mark.slow
def test_a_study_on_one_core_runs_one_trial_at_a_time(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from gpm_tune.study.cluster.capacity import this_machine\n"
        "from gpm_tune.study.cluster.connection import connected\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "with connected('local') as capacity:\n"
        "    for place in (capacity(), this_machine()): print(place.present[0].resources['CPU'])"
    )
    bound = call(tmp_path, code=program)
    assert bound.returncode == 0, bound.stderr
    assert bound.stdout.splitlines()[-2:] == ["1.0", "1.0"]


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "250000 100000", "a/cpu.max": "max 100000"}, 2.5),
        (
            "0::/a/b",
            {"a/b/cpu.max": "800000 100000", "a/cpu.max": "400000 100000"},
            4.0,
        ),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/kubepods/pod1", {"cpu.max": "150000 100000"}, 1.5),  # a container that sees its own group only
        (
            "5:memory:/m\n4:cpu,cpuacct:/docker/1\n0::/",
            {
                "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("2:cpuacct:/x\n1:freezer:/", {}, None),
    ],
)
def test_the_tightest_limit_of_the_control_groups_counts(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    write(tmp_path / "proc/self/cgroup", membership)
    for name, content in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, content)
    assert quota(tmp_path) == expected


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}\n")


def test_there_is_always_a_core_and_no_more_than_the_machine_has() -> None:
    assert quota(Path("/nowhere")) is None
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
