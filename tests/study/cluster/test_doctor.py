"""What the doctor says of good and of bad surroundings, each as it would be met."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from program import COMMAND, gpm_tune, write_study

from gpm_tune.errors import UserError
from gpm_tune.study.cluster import checks
from gpm_tune.study.cluster.capacity import this_machine
from gpm_tune.study.cluster.checks import Case, within
from gpm_tune.study.cluster.doctor import Finding, Findings, examine, ok, run_check
from gpm_tune.study.cluster.nodes import Gpu, NodeReport
from gpm_tune.study.cluster.probe import file_system, round_trip
from gpm_tune.study.storage.home import Home

H100 = Gpu(name="NVIDIA H100", capability="9.0", memory=80 * 2**30, free=79 * 2**30)
NODE = NodeReport(
    "10.0.0.1",
    torch="2.14.1+cu130",
    cuda="13.0",
    driver="580.65",
    driver_cuda="13.0",
    gpus=[H100],
    free={"/home": 50 * 10**9},
)


def case(home: Home, *nodes: NodeReport) -> Case:
    """A cluster of these nodes."""
    return Case(home, "auto", None, this_machine(), NodeReport("this machine"), list(nodes))


def found_by(check: checks.Check, looked_at: Case) -> list[tuple[str, str]]:
    return [(finding.level, finding.found) for finding in check(looked_at)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def levels(findings: list[Finding]) -> dict[str, str]:
    """The worst level of each check."""
    worst: dict[str, str] = {}
    for finding in findings:
        order = ["ok", "warn", "fail"]
        worst[finding.check] = max(worst.get(finding.check, "ok"), finding.level, key=order.index)
    return worst


def test_all_is_well_and_nothing_is_left_behind(tmp_path: Path) -> None:
    study, home, storage = write_study(tmp_path), tmp_path / "home", tmp_path / "storage"
    before = sorted(tmp_path.iterdir())
    result = gpm_tune("doctor", study, "--storage", storage, home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    for start in (
        "ok    Python     3.",
        "ok    packages   torch ",
        "ok    study      small is valid: 4 values searched in 4 trials",
        "ok    versions   gpm-tune 0.2.0 (code ",
        "ok    data       gaussians with the fingerprint ",
        f"ok    home       {home} ",
        f"ok    storage    {storage}: written at ",
        "ok    tracking   sqlite:///",
        "ok    resources  a trial takes 1 CPU and 0 GPU; ",
    ):
        assert any(line.startswith(start[:60]) for line in result.stdout.splitlines()), result.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    study = write_study(tmp_path, budget={"trails": 4})
    (tmp_path / "file").write_text("no folder")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"http://me:planted-secret@127.0.0.1:{nobody.getsockname()[1]}"
        result = gpm_tune(
            "doctor",
            study,
            "--json",
            "--storage",
            tmp_path / "file" / "storage",
            "--tracking-uri",
            away,
            "--home",
            tmp_path / "file" / "home",
        )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "planted-secret" not in result.stdout + result.stderr
    said = {line["check"]: line for line in json.loads(result.stdout) if line["level"] == "fail"}
    assert sorted(said) == ["home", "storage", "study", "tracking"]
    assert "did you mean 'trials'?" in said["study"]["found"]
    assert "GPM_TUNE_HOME" in said["home"]["advice"]
    assert "Connection refused" in said["tracking"]["found"]


def test_a_broken_torchvision_is_a_line_and_no_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    result = subprocess.run(
        [*COMMAND, "doctor"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=280,
        check=False,
    )
    assert result.returncode == 1
    assert "torchvision cannot be imported: RuntimeError: operator torchvision::nms" in result.stdout
    assert "pip install -c constraints.txt ." in result.stdout
    assert result.stderr == ""


def test_a_cluster_that_does_not_answer_is_told_soon(home: Home) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        findings = list(examine(None, home, f"127.0.0.1:{nobody.getsockname()[1]}"))
    assert levels(findings)["cluster"] == "fail"
    assert levels(findings)["home"] == "ok", "the others are made all the same"


def test_what_a_check_raises_is_a_finding_of_its() -> None:
    def crash() -> Findings[None]:
        yield ok("so far")
        raise ZeroDivisionError("by what?\nby zero")

    def complain() -> Findings[None]:
        yield from ()
        raise UserError("one\ntwo")

    assert list(run_check("sums", crash)) == [
        Finding("ok", "so far", check="sums"),
        Finding("fail", "ZeroDivisionError: by what?", check="sums"),
    ]
    assert [finding.found for finding in run_check("sums", complain)] == ["one", "two"]


@pytest.mark.parametrize(
    ("changes", "level", "found"),
    [
        (
            {},
            "ok",
            "1 x NVIDIA H100 (80 GiB); torch is built for CUDA 13.0, driver 580.65 runs CUDA up to 13.0",
        ),
        ({"driver_cuda": "13.2"}, "ok", "up to 13.2"),
        ({"cuda": "13.2"}, "ok", "built for CUDA 13.2"),
        ({"driver_cuda": "12.8"}, "fail", "torch 2.14.1+cu130 is built for CUDA 13.0; driver"),
        ({"cuda": "", "torch": "2.14.1+cpu"}, "fail", "torch 2.14.1+cpu is built without CUDA"),
        ({"gpus": [H100, {**H100, "free": 60 * 2**30}]}, "warn", "GPU 1: 20.0 of its 80.0 GiB are in use"),
        ({"gpus": []}, "warn", "no NVIDIA GPU on any node"),
        ({"kernels": ["sm_80", "sm_90"]}, "ok", "1 x NVIDIA H100"),
        (
            {"kernels": ["sm_100", "sm_120"]},
            "fail",
            "no kernels for NVIDIA H100, of compute capability 9.0: it is built for sm_100, sm_120",
        ),
    ],
)
def test_gpus_are_held_against_torch_and_the_driver(
    home: Home, changes: dict[str, object], level: str, found: str
) -> None:
    (*_, finding) = checks.check_gpus(case(home, replace(NODE, **changes)))  # type: ignore[arg-type]
    assert finding.level == level
    assert found in finding.found


@pytest.mark.parametrize(
    ("built_for", "capability", "expected"),
    [
        ("sm_75 sm_80 sm_86 sm_90", "8.9", True),  # an L4
        ("sm_75 sm_80 sm_86 sm_90", "7.0", False),  # a V100
        ("sm_75 sm_80 sm_86 sm_90", "10.0", False),
        ("sm_86", "8.0", False),  # older than what it is built for
        ("sm_80 compute_80", "12.0", True),  # compiled when it starts
        ("compute_90", "8.9", False),
        ("sm_90a", "9.0", True),
        ("sm_100a", "10.3", False),
    ],
)
def test_kernels_run_on_newer_gpus_of_the_same_kind(built_for: str, capability: str, expected: bool) -> None:
    assert checks.has_kernels(built_for.split(), capability) is expected


def test_nodes_of_which_the_same_is_true_share_a_line(home: Home) -> None:
    nodes = [replace(NODE, node=f"10.0.0.{i}", free={"/home": int(5e9)}) for i in (1, 2)]
    nodes.append(replace(NODE, node="10.0.0.3", free={"/home": int(5e8)}))
    assert found_by(checks.check_disks, case(home, *nodes)) == [
        ("warn", "nodes 10.0.0.1, 10.0.0.2: /home has 5.0 GB free"),
        ("fail", "node 10.0.0.3: /home has 0.5 GB free"),
    ]


@pytest.mark.parametrize(("offset", "level"), [(-0.2, "ok"), (-1.5, "warn"), (31.0, "fail")])
def test_clocks_may_differ_by_a_second(offset: float, level: str) -> None:
    (finding,) = checks.judge_clocks({"10.0.0.1": (0.1, 0.001), "10.0.0.2": (offset, 0.001)})
    assert finding.level == level
    assert f"{abs(offset):.1f}" in finding.found


def test_a_home_on_a_network_is_known_by_its_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        "srv:/x /mnt/two\\040words nfs4 rw 0 0\n"
        "tmpfs /mnt/two\\040words/fast tmpfs rw 0 0\n"
    )
    for folder, kind in [
        ("/home/me", "ext4"),
        ("/mnt/two words/me", "nfs4"),
        ("/mnt/two words/fast", "tmpfs"),
    ]:
        assert file_system(Path(folder), mounts) == kind
    remote = ["nfs", "nfs4", "cifs", "fuse.s3fs", "fuse.sshfs"]
    local = ["ext4", "xfs", "overlay", "tmpfs", "fuse.fuse-overlayfs", "fuseblk"]
    assert [kind for kind in remote + local if checks.NETWORK.fullmatch(kind)] == remote


def test_a_database_that_is_none_is_said(home: Home) -> None:
    home.root.mkdir()
    (home.root / "optuna.db").write_text("not SQLite, whatever its name says")
    ((level, found),) = found_by(checks.check_home, case(home))
    assert (level, "optuna.db cannot be read" in found) == ("fail", True)


def test_the_tracking_store_is_written_without_a_trace(home: Home) -> None:
    home.root.mkdir()
    home.mlflow().search_experiments()
    file = home.root / "mlflow.db"
    before = rows(file)
    ((level, found),) = found_by(checks.check_tracking, case(home))
    assert (level, "can be written" in found) == ("ok", True)
    assert rows(file) == before


def rows(database: Path) -> dict[str, int]:
    with sqlite3.connect(database) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for (name,) in tables}


def test_a_bucket_is_a_storage(bucket: str, home: Home) -> None:
    ((level, found),) = found_by(checks.check_storage, case(Home(home.root, storage=bucket)))
    assert (level, found.startswith("s3://bucket/studies: written at ")) == ("ok", True)
    ((level, found),) = found_by(checks.check_storage, case(Home(home.root, storage="s3://another/studies")))
    assert (level, "NO_SUCH_BUCKET" in found) == ("fail", True)


def test_nodes_of_other_hosts_need_a_storage(home: Home) -> None:
    own, other = replace(NODE, runs_host="head"), replace(NODE, node="10.0.0.2", runs_host="worker")
    ((level, found),) = found_by(checks.check_storage, replace(case(home, own, other), own=own))
    assert (level, "node 10.0.0.2" in found, "none is set" in found) == ("fail", True, True)
    ((level, found),) = found_by(checks.check_storage, replace(case(home, own, own), own=own))
    assert (level, found) == ("ok", "none is set: everything stays in the home")


def test_runs_that_cannot_be_written_are_said(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (home.root, tmp_path / "storage"):
        place.mkdir(exist_ok=True)
        (place / "runs").symlink_to(tmp_path / "file")  # even root cannot write there
    ((level, found),) = found_by(checks.check_home, case(home))
    assert (level, found) == ("fail", f"{home.root}/runs: Not a directory")
    stored = Home(home.root, storage=str(tmp_path / "storage"))
    ((level, found),) = found_by(checks.check_storage, case(stored))
    assert (level, found.startswith(f"{tmp_path}/storage: ")) == ("fail", True)


def test_a_folder_of_the_same_name_is_not_the_same_storage(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("from another machine")
    assert round_trip(str(tmp_path), "mark").write > 0
    (tmp_path / "mark").unlink()
    with pytest.raises(UserError, match="it is not the same storage"):
        round_trip(str(tmp_path), "mark")
    assert not list(tmp_path.iterdir())


def test_what_hangs_is_left_behind() -> None:
    from threading import Event

    hang = Event()
    with pytest.raises(UserError, match=r"has not answered within 0\.1 s"):
        within(0.1, hang.wait)
    hang.set()
    assert within(10, str, 5) == "5"
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0)
