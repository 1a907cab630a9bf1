"""Nodes that differ are found and named: by reports made by hand, and on a real cluster of unlike nodes."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from examples import IMAGES, POINTS, experiment_of
from filelock import FileLock
from PIL import Image
from program import Started, gpm_tune, write_study
from ray.cluster_utils import Cluster

import gpm_tune as package
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.cluster.connection import connected
from gpm_tune.study.cluster.nodes import (
    NOT_IMPORTED,
    NodeReport,
    ask_every_node,
    check_same,
    clock_offsets,
    differences,
    incompatibility,
    look,
    look_everywhere,
)
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import prepare_data
from gpm_tune.study.tracking.provenance import code_digest
from gpm_tune.training import Experiment

MNIST = space.put(POINTS, {**IMAGES, "data": {"name": "mnist"}, "evaluation.samples": 2})
SEARCH = {"model.eta": {"float": [1.0, 4.0]}}
SIDE = 28

OWN = NodeReport(
    "10.0.0.1",
    python="3.11.7",
    gpm_tune="0.2.0",
    code="c0de",
    ray="2.60.0",
    torch="2.14.1+cpu",
    plugins={"gpm-tune-moons": "1.0"},
    data="da7a",
    runs_host="head",
)


def test_a_node_is_alike_whatever_its_patch_of_python_and_its_build_of_torch() -> None:
    other = replace(OWN, node="10.0.0.2", python="3.11.9", torch="2.14.1+cu130", cuda="13.0")
    assert not list(differences(OWN, other))
    check_same(OWN, [OWN, other])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"code": "0dd"}, "gpm_tune: expected 0.2.0 (code c0de), found 0.2.0 (code 0dd)"),
        ({"gpm_tune": "0.0.9"}, "gpm_tune: expected 0.2.0 (code c0de), found 0.0.9 (code c0de)"),
        ({"ray": "2.59.0"}, "Ray: expected 2.60.0, found 2.59.0"),
        ({"python": "3.12.1"}, "Python: expected 3.11, found 3.12"),
        ({"torch": "2.13.0+cpu"}, "torch: expected 2.14.1, found 2.13.0"),
        ({"plugins": {"gpm-tune-moons": "1.1"}}, "plug-in gpm-tune-moons: expected 1.0, found 1.1"),
        ({"plugins": {}}, "plug-in gpm-tune-moons: expected 1.0, found none"),
        (
            {"runs_host": "worker"},
            "its trials would write their runs to its own disk, and not to that of this process",
        ),
        ({"data": "0ther"}, "data: expected the fingerprint da7a, found 0ther"),
        ({"error": f"{NOT_IMPORTED} (no module)"}, f"{NOT_IMPORTED} (no module)"),
    ],
)
def test_what_differs_is_said_with_what_was_expected(changes: dict[str, Any], sentence: str) -> None:
    (difference,) = differences(OWN, replace(OWN, node="10.0.0.2", **changes))
    assert difference.sentence == sentence
    with pytest.raises(UserError) as refusal:
        check_same(OWN, [OWN, replace(OWN, node="10.0.0.2", **changes)])
    assert f"node 10.0.0.2: {sentence}" in str(refusal.value).splitlines()


def test_nodes_with_disks_of_their_own_need_a_storage() -> None:
    own, other = OWN, replace(OWN, node="10.0.0.2", runs_host="worker")
    with pytest.raises(UserError, match=r"(?s)no trial was started.*10\.0\.0\.2: .*Set --storage"):
        check_same(own, [own, other])
    assert "Set --storage" in str(incompatibility(own, other)), "of one that joins later, too"
    with_storage = [replace(node, runs_host="") for node in (own, other)]
    check_same(with_storage[0], with_storage)
    assert look("here").runs_host == look("there").runs_host != "", "raylets of one machine share its disk"
    assert look("here", storage="s3://bucket/prefix").runs_host == ""


@pytest.mark.parametrize(
    "changes",
    [{"data": "", "lacks": "MNIST is not in /data"}, {"error": "it has not answered within 600 s"}],
)
def test_what_may_pass_on_one_node_keeps_no_study_from_starting(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(OWN, node="10.0.0.2", **changes)
    check_same(OWN, [OWN, other])
    assert f"node 10.0.0.2: {other.lacks or other.error}; trials that start there try again" in caplog.text
    assert incompatibility(OWN, other) is None
    with pytest.raises(UserError, match=r"node 10.0.0.2: "):
        check_same(OWN, [other])  # on all of them


def test_all_nodes_that_differ_are_named_and_advice_is_given_once() -> None:
    others = [replace(OWN, node=f"10.0.0.{i}", ray="2.59.0", data="0ther") for i in (2, 3)]
    with pytest.raises(UserError) as refusal:
        check_same(OWN, others)
    assert str(refusal.value).splitlines() == [
        "no trial was started: the nodes lack what the process that runs the study has",
        "nodes 10.0.0.2, 10.0.0.3: Ray: expected 2.60.0, found 2.59.0",
        "nodes 10.0.0.2, 10.0.0.3: data: expected the fingerprint da7a, found 0ther",
        "`ray up` of the cluster's file again installs the same versions on every node",
        "Delete the data set on the nodes whose copy is wrong, and it is fetched again",
    ]


def test_a_look_at_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made"
    report = look("here", POINTS, [str(folder)])
    assert (report.error, report.lacks) == ("", "")
    assert len(report.data) == 16
    assert report.free[str(folder)] > 0
    assert not folder.parent.exists()
    assert report.data == look("here", experiment_of(seed=1).model_dump(mode="json")).data
    assert report.data != look("here", experiment_of(data__samples=1999).model_dump(mode="json")).data
    assert (
        "the data set mnist is damaged"
        in look("here", space.put(MNIST, {"data.root": str(damaged(tmp_path))})).lacks
    )


def damaged(folder: Path) -> Path:
    """A folder with MNIST's files, which hold no images."""
    write_mnist(folder / "damaged", 0)
    for file in (folder / "damaged").rglob("*-ubyte"):
        file.write_bytes(b"MNIST? no")
    return folder / "damaged"


def write_mnist(root: Path, colour: int) -> None:
    """MNIST's four files with twenty images of one colour in each set."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        images = struct.pack(">iiii", 2051, 20, SIDE, SIDE) + bytes([colour]) * (20 * SIDE * SIDE)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 20) + bytes(20))


def test_the_code_of_two_checkouts_differs_by_one_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_package(tmp_path)
    monkeypatch.setattr(package, "__file__", str(copy / "__init__.py"))
    assert code_digest.__wrapped__() == code_digest()
    with (copy / "errors.py").open("a") as file:
        file.write("\n")
    assert code_digest.__wrapped__() != code_digest()


def copy_package(folder: Path) -> Path:
    copy = folder / "gpm_tune"
    shutil.copytree(Path(package.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_data_come_from_the_storage_where_that_has_them(tmp_path: Path) -> None:
    write_mnist(tmp_path / "storage" / "data", 1)
    experiment = space.put(MNIST, {"data.root": str(tmp_path / "node")})
    report = look("here", experiment, storage=str(tmp_path / "storage"))
    assert (report.lacks, bool(report.data)) == ("", True)
    assert (tmp_path / "node" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").is_file()


def test_a_folder_of_pictures_comes_from_the_storage_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "cache"))
    stored, here = tmp_path / "storage" / "data" / "pictures", tmp_path / "node" / "pictures"
    for number in range(30):
        (stored / "a" / "b").mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(stored / ("a" if number % 2 else "a/b") / f"{number}.png")
    data = {"name": "folder", "root": str(here), "size": 16}
    experiment = space.put(MNIST, {"data": data})
    report = look("here", experiment, storage=str(tmp_path / "storage"))
    assert (report.lacks, bool(report.data)) == ("", True)
    assert len(list(here.rglob("*.png"))) == 30
    there = look("there", space.put(experiment, {"data.root": str(stored)}))
    assert there.data == report.data, "wherever they lie, and whenever they were written"
    absent = space.put(experiment, {"data.root": str(tmp_path / "absent")})
    assert "data.root: " in look("here", absent, storage=str(tmp_path / "storage")).lacks
    assert not (tmp_path / "absent").exists()


def test_where_a_copy_cannot_be_kept_is_said(tmp_path: Path) -> None:
    write_mnist(tmp_path / "storage" / "data", 0)
    (tmp_path / "file").touch()
    experiment = Experiment.model_validate(space.put(MNIST, {"data.root": str(tmp_path / "file" / "inside")}))
    with pytest.raises(UserError, match=r"the data cannot be copied from .*storage: .*file/inside"):
        prepare_data(experiment, str(tmp_path / "storage"))


def test_too_few_samples_are_said_before_a_trial_starts(tmp_path: Path) -> None:
    write_mnist(tmp_path, 0)
    experiment = space.put(MNIST, {"data.root": str(tmp_path), "training.batch_size": 19})
    with pytest.raises(UserError, match=r"training.batch_size is 19, but data 'mnist' has 18 train"):
        prepare_data(Experiment.model_validate(experiment))


def test_data_are_fetched_by_one_process_at_a_time(tmp_path: Path) -> None:
    write_mnist(tmp_path, 0)
    experiment = Experiment.model_validate(space.put(MNIST, {"data.root": str(tmp_path)}))
    with FileLock(tmp_path / "MNIST.lock"):
        other = threading.Thread(target=prepare_data, args=[experiment])
        other.start()
        other.join(0.5)
        assert other.is_alive(), "it waits for who holds the lock"
    other.join(30)
    assert not other.is_alive()


@dataclass
class Unlike:
    """A cluster of nodes that are not alike, each known by the first digits of its id."""

    cluster: Cluster
    good: str
    changed: str  # has the package with another line
    old: str  # has a package without this module
    other_data: str
    folder: Path


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unlike]:
    folder = tmp_path_factory.mktemp("unlike")
    for colour, name in enumerate(["data", "other_data"]):
        write_mnist(folder / name, colour)
    with (copy_package(folder / "changed") / "errors.py").open("a") as file:
        file.write("# another line\n")
    (folder / "old" / "gpm_tune").mkdir(parents=True)
    (folder / "old" / "gpm_tune" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPM_TUNE_DATA", str(folder / "data"))
        patch.chdir(folder)  # Ray's workers import from the driver's folder first
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            nodes = [
                cluster.add_node(num_cpus=1, env_vars={name: str(folder / value)})
                for name, value in [
                    ("PYTHONPATH", "changed"),
                    ("PYTHONPATH", "old"),
                    ("GPM_TUNE_DATA", "other_data"),
                ]
            ]
            ids = [node.node_id[:8] for node in (cluster.head_node, *nodes)]
            yield Unlike(cluster, *ids, folder)  # type: ignore[misc]
        finally:
            cluster.shutdown()


def by_id(items: list[Any]) -> dict[str, Any]:
    """Things that have a node, by the digits of its id in parentheses."""
    return {item.node[-9:-1]: item for item in items}


@pytest.mark.slow
def test_every_unlike_node_is_named_before_a_trial_starts(unlike: Unlike) -> None:
    with connected(unlike.cluster.address):
        own, reports = look("here", MNIST), by_id(look_everywhere(MNIST, seconds=180))
        offsets = clock_offsets()
    assert [list(differences(own, reports[unlike.good]))] == [[]]
    (code,) = differences(own, reports[unlike.changed])
    assert code.sentence.startswith(f"gpm_tune: expected 0.2.0 (code {own.code}), found 0.2.0 (code ")
    assert "No module named 'gpm_tune.study'" in reports[unlike.old].error
    (data,) = differences(own, reports[unlike.other_data])
    assert (data.about, own.data in data.sentence) == ("data", True)
    with pytest.raises(UserError) as refusal:
        check_same(own, reports.values())
    for node in (unlike.changed, unlike.old, unlike.other_data):
        assert f"({node})" in str(refusal.value)
    assert f"({unlike.good})" not in str(refusal.value)
    assert len(offsets) == 3, "of all that can be asked"
    assert all(abs(offset) < 1 for offset, _ in offsets.values())


@pytest.mark.slow
def test_a_node_that_is_frozen_does_not_keep_the_others_waiting(unlike: Unlike) -> None:
    (frozen,) = [node for node in unlike.cluster.worker_nodes if node.node_id[:8] == unlike.other_data]
    raylet = frozen.all_processes["raylet"][0].process.pid
    with connected(unlike.cluster.address):
        os.kill(raylet, signal.SIGSTOP)
        try:
            answers = by_id(ask_every_node(platform.python_version, seconds=8))
        finally:
            os.kill(raylet, signal.SIGCONT)
    assert answers[unlike.other_data].error == "it has not answered within 8 s"
    assert answers[unlike.good].value == platform.python_version()


@pytest.mark.slow
def test_the_doctor_names_them_too(unlike: Unlike) -> None:
    study = write_study(unlike.folder, experiment=MNIST, search={"model.eta": {"float": [1.0, 4.0]}})
    storage = unlike.folder / "storage"
    result = gpm_tune(
        "doctor",
        study,
        "--address",
        unlike.cluster.address,
        "--storage",
        storage,
        home=unlike.folder / "home",
    )
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    for check, node in [
        ("versions", unlike.changed),
        ("versions", unlike.old),
        ("data", unlike.other_data),
    ]:
        assert any(line.startswith(f"fail  {check}") and f"({node})" in line for line in lines), result.stdout
    for check in ("storage", "clocks", "disks", "resources"):
        assert any(line.startswith(f"ok    {check}") for line in lines), result.stdout
    assert not [file for file in unlike.folder.iterdir() if "doctor" in file.name]


@pytest.mark.slow
def test_a_study_on_unlike_nodes_does_not_start(unlike: Unlike) -> None:
    path = write_study(unlike.folder, name="unlike", experiment=space.put(POINTS, IMAGES), search=SEARCH)
    home = unlike.folder / "home"
    result = gpm_tune("run", path, "--address", unlike.cluster.address, home=home)
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"({unlike.changed})" in result.stderr
    assert "no trial was started" in result.stderr
    assert read_study(Home(home).optuna_uri, "unlike").trials == []


def has_namespaces() -> bool:
    return subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_namespaces(), reason="another host's name needs a namespace of its own")
def test_a_study_without_a_storage_does_not_start_on_two_hosts(tmp_path: Path) -> None:
    path, home = write_study(tmp_path, name="apart"), tmp_path / "home"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    join = f"hostname elsewhere; exec {sys.executable} -m ray.scripts.scripts start --num-cpus 1 --block"
    node = subprocess.Popen(
        ["unshare", "--uts", "sh", "-c", f"{join} --address {cluster.address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_nodes(cluster.address, 2)
        result = gpm_tune("run", path, "--address", cluster.address, home=home)
        assert result.returncode == 2, result.stdout + result.stderr
        assert "no trial was started" in result.stderr
        assert "its trials would write their runs to its own disk" in result.stderr
        assert "Set --storage" in result.stderr
        assert read_study(Home(home).optuna_uri, "apart").trials == []
        storage = tmp_path / "storage"
        result = gpm_tune("run", path, "--address", cluster.address, "--storage", storage, home=home)
        assert result.returncode == 0, result.stdout + result.stderr
        assert list(storage.glob("runs/*/checkpoints/*"))
    finally:
        node.terminate()
        node.wait(60)
        cluster.shutdown()


def wait_for_nodes(address: str, count: int) -> None:
    end = time.monotonic() + 120
    with connected(address):
        while sum(node["Alive"] for node in ray.nodes()) < count:
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.5)


@pytest.mark.slow
def test_an_unlike_node_that_joins_later_interrupts_the_study(tmp_path: Path) -> None:
    with (copy_package(tmp_path / "changed") / "errors.py").open("a") as file:
        file.write("# another line\n")
    long = space.put(POINTS, {"training.steps": 30_000, "evaluation.every": 500, "evaluation.nfe": []})
    path = write_study(tmp_path, name="late", experiment=long, budget={"trials": 2})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        words = ["run", path, "--home", tmp_path / "home", "--address", cluster.address]
        study = Started(*words, folder=tmp_path)
        lines = []
        for line in study.stdout:
            lines.append(line)
            if "trial 0: step 500/" in line:
                cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path / "changed")})
        output = "".join(lines)
        assert study.wait(60) == 2, output
    finally:
        cluster.shutdown()
    assert "the study was interrupted: node " in output
    assert "gpm_tune: expected" in output
    trials = read_study(Home(tmp_path / "home").optuna_uri, "late").trials
    assert [(trial.number, trial.state) for trial in trials] == [(0, "interrupted"), (1, "interrupted")]
    assert trials[0].run is not None
    assert trials[0].step >= 500
