"""`ray up` on machines that one has, for real: a head and two workers, each with a network and an SSH server.

GPM_TUNE_CHAOS=full cuts a worker off for a minute.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from accounting import STUDY, check_accounts, check_values, write_chaos_study
from examples import IMAGES, POINTS
from hosts import BIN, Host, Network, network_of, why_not
from mlflow.tracking import MlflowClient
from PIL import Image
from program import write_study

from gpm_tune.study.definition import space
from gpm_tune.study.starting.skeleton import write_skeleton

OBSTACLE = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.launcher, pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)]

LOCAL = Path(__file__).parents[2] / "deploy" / "local.yaml"
TRIALS = 4
PIP = [str(BIN / "python"), "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
FEW = ["--trials", "1", "--set", "experiment.training.steps=4", "--set", "experiment.evaluation.every=2"]
CUT_OFF = 60 if os.environ.get("GPM_TUNE_CHAOS") == "full" else 5  # seconds
MLFLOW, DASHBOARD = 5000, 8265
# A silent node is declared dead after some 5 s and started again after 10, and its Ray believes that the head
# is gone after 20; with Ray's own values each takes up to a minute.
IMPATIENT = """export RAY_AUTH_MODE=token
    export RAY_health_check_period_ms=500 RAY_health_check_timeout_ms=1000
    export RAY_health_check_failure_threshold=5 RAY_gcs_rpc_server_reconnect_timeout_s=20
    export AUTOSCALER_HEARTBEAT_TIMEOUT_S=10"""


class Cluster:
    """A cluster as its user has it: a file on the laptop, and the commands typed there."""

    def __init__(self, network: Network, shared: Path) -> None:
        self.network = network
        self.laptop = network.laptop
        self.head, *self.workers = network.hosts
        self.shared = shared
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.file = self.laptop.home / "project" / "local.yaml"
        self.file.parent.mkdir()
        self.file.write_text(self._edited(LOCAL.read_text()))

    def _edited(self, text: str) -> str:
        """The file that comes with the program, with what its user would change."""
        head, *workers = map(self.network.address, self.network.hosts)
        for old, new in {
            "cluster_name: gpm-tune": f"cluster_name: {self.name}",
            "head_ip: 10.0.0.10": f"head_ip: {head}",
            "[10.0.0.11, 10.0.0.12]": f"[{', '.join(workers)}]",
            "CHANGE-user": "root",
            "/mnt/shared/gpm-tune": str(self.shared),
            "$DISK/gpm-venv/bin": str(BIN),
            "export RAY_AUTH_MODE=token": IMPATIENT,
            "ray start --address": "ray start --num-cpus=1 --address",
        }.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        data = yaml.safe_load(text)
        assert "pip install" in data["setup_commands"][-1]
        data["setup_commands"][-1] = "gpm-tune --version"  # it is on the disk that the hosts share
        return yaml.safe_dump(data)

    def typed(self, *command: str | Path) -> list[str]:
        """A command as it is typed on the laptop, in the project's folder."""
        return self.laptop.inside("env", "-C", self.file.parent, *command)

    def run(self, *command: str | Path) -> str:
        """What a command prints on the laptop; it has to succeed."""
        return self.laptop.run("env", "-C", self.file.parent, *command)

    def nodes(self) -> int:
        """How many nodes are alive."""
        return self.run("ray", "exec", self.file, "ray list nodes").count(" ALIVE ")

    def training(self) -> list[Host]:
        """The hosts on which a trial runs."""
        return [host for host in self.network.hosts if any("Trainable" in line for line in host.processes())]

    def home(self, host: Host) -> Path:
        """Where a host keeps studies."""
        return (self.file.parent if host is self.laptop else host.home) / "gpm-runs"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("launcher")
    shared = folder / "shared"
    shared.mkdir()
    with network_of(folder, "head", "worker1", "worker2") as network:
        cluster = Cluster(network, shared)
        yield cluster
    sockets = hashlib.sha256(cluster.name.encode()).hexdigest()[:10]  # of SSH, as Ray's launcher names them
    for place in Path("/tmp").glob(f"ray_ssh_*/{sockets}"):
        shutil.rmtree(place)


def wait_for(condition: Callable[[], object], seconds: float = 180) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)


def check_services(cluster: Cluster) -> None:
    """MLflow and the dashboard listen on the head's 127.0.0.1 alone."""
    ports = cluster.head.listening()
    assert (ports[MLFLOW], ports[DASHBOARD]) == ({"127.0.0.1"}, {"127.0.0.1"})
    for worker in cluster.workers:
        assert not {MLFLOW, DASHBOARD} & worker.listening().keys()


def check_books(home: Path) -> None:
    """Nothing is lost and nothing is there twice."""
    check_accounts(f"sqlite:///{home / 'optuna.db'}", MlflowClient(f"sqlite:///{home / 'mlflow.db'}"), TRIALS)


def test_ray_up_starts_the_head_and_all_workers(cluster: Cluster) -> None:
    cluster.run("ray", "get-auth-token", "--generate")
    cluster.run("ray", "up", "-y", "--no-config-cache", cluster.file)
    wait_for(lambda: cluster.nodes() == 3)
    wait_for(lambda: MLFLOW in cluster.head.listening())
    check_services(cluster)


def test_a_study_runs_on_all_workers_and_outlives_one_that_is_cut_off(cluster: Cluster) -> None:
    study = write_chaos_study(cluster.file.parent, TRIALS)
    command = cluster.typed("gpm-tune", "run", study, "--cluster", cluster.file)
    log = cluster.laptop.home / "run.log"
    with log.open("w") as output:
        run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    wait_for(lambda: run.poll() is not None or cluster.training() == cluster.workers)
    check_services(cluster)
    with cluster.network.cut_off(cluster.workers[0]):
        time.sleep(CUT_OFF)
        wait_for(lambda: "its process was lost" in log.read_text(), seconds=60)
    assert run.wait(200) == 0, log.read_text()
    assert f"study {STUDY}: {TRIALS} complete" in log.read_text()
    wait_for(lambda: cluster.nodes() == 3)


def test_results_are_brought_to_the_laptop(cluster: Cluster) -> None:
    said = cluster.run("gpm-tune", "status", STUDY, "--cluster", cluster.file)
    assert f"study {STUDY}: {TRIALS} complete" in said
    assert list(cluster.shared.glob("runs/*/checkpoints/*/weights.safetensors"))
    cluster.run("gpm-tune", "fetch", STUDY, "--cluster", cluster.file)
    assert list(cluster.home(cluster.laptop).glob("runs/*/checkpoints/*/weights.safetensors"))


def test_what_only_the_laptop_has_goes_along(cluster: Cluster, tmp_path: Path) -> None:
    """A package with a network: the disk is shared, but nobody else has the package on the path."""
    package = write_skeleton("network", "wave", tmp_path / "package")
    place = tmp_path / "place"
    subprocess.run([*PIP, "--target", place, package], check=True)
    study = cluster.file.parent / "wave.yaml"
    study.write_text((package / "wave.yaml").read_text())
    typed = ["env", f"PYTHONPATH={place}", "gpm-tune", "run", study, *FEW, "--cluster", cluster.file]
    said = cluster.run(*typed)
    assert "study wave: 1 complete" in said


def test_pictures_reach_the_workers_as_one_array(cluster: Cluster, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(30):
        Image.new("L", (20, 20), 8 * number).save(pictures / f"{number}.png")
    data = {"name": "folder", "root": "~/pictures", "size": 16}
    experiment = space.put(
        POINTS, {**IMAGES, "data": data, "evaluation.samples": 2, "training.batch_size": 4}
    )
    study = write_study(
        cluster.file.parent,
        name="pictures",
        experiment=experiment,
        search={"model.eta": {"float": [1.0, 4.0]}},
        budget={"trials": 2},
    )
    shutil.copytree(pictures, cluster.laptop.home / "pictures")
    examined = cluster.run("gpm-tune", "doctor", study, "--cluster", cluster.file)
    assert "folder pictures with the fingerprint" in examined
    assert "on 3 nodes" in examined
    said = cluster.run("gpm-tune", "run", study, "--cluster", cluster.file)
    assert "study pictures: 2 complete" in said
    stored = [file for file in (cluster.shared / "data").rglob("*") if file.is_file()]
    assert sorted(file.name for file in stored) == ["current", "pictures.npy"]
    for host in cluster.network.hosts:
        assert not (host.home / "pictures").exists()
        assert len(list(host.home.rglob("pictures.npy"))) == 1


def test_ray_down_ends_every_process_and_no_result_is_lost(cluster: Cluster) -> None:
    cluster.run("ray", "down", "-y", cluster.file)
    for host in (cluster.head, cluster.laptop):
        check_books(cluster.home(host))
    check_values(f"sqlite:///{cluster.home(cluster.laptop) / 'optuna.db'}")
    first = {"bash", "sshd:", "ps"}  # a host's first processes, and the one that looks
    for host in cluster.network.hosts:
        wait_for(lambda host=host: {line.split()[0] for line in host.processes()} == first)  # type: ignore[misc]
