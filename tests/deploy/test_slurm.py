"""The scripts for Slurm; stand-ins for its commands run what the real ones would, all else is real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accounting import STUDY, check_accounts, write_chaos_study
from hosts import BIN, Host, Network, network_of, why_not
from mlflow.tracking import MlflowClient
from program import gpm_tune

Condition = Callable[[], object]
Inside = Callable[..., list[str]]  # a command that runs another one on a host
SCRIPTS = Path(__file__).parents[2] / "deploy" / "slurm"
JOB = "4711"
TRIALS = 2
REQUEUE = 'echo "$*" >> "$STAND_IN/requeues"'
# One process a node: here, and on the others through SSH, with what the caller exported. Ray believes there
# after seconds that the head is gone, by its own value after a minute.
SRUN = """
while [[ $1 == --* ]]; do echo "$1" >> "$STAND_IN/srun"; shift; done
{ export -p; declare -fx; echo export RAY_gcs_rpc_server_reconnect_timeout_s=5; } > "$STAND_IN/step"
printf '%q ' "$@" >> "$STAND_IN/step"
for node in $OTHER_NODES; do
  ssh -n -i "$KEY" -o StrictHostKeyChecking=no -o LogLevel=ERROR "root@$node" bash "$STAND_IN/step" &
done
"$@"
code=$?
wait
exit $code
"""


def options(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", (SCRIPTS / script).read_text(), re.MULTILINE)
    return dict(lines)


class Slurm:
    """A queue of one job, whose requeueing runs its script again."""

    def __init__(self, folder: Path, script: str, **changes: str) -> None:
        self.folder = folder
        self.log = folder / "job.log"
        self.storage = folder / "shared"
        self.storage.mkdir()
        self.script = folder / script
        text = (SCRIPTS / script).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        self.script.write_text(text)
        for name, body in {"scontrol": REQUEUE, "srun": SRUN}.items():
            self.install(name, body)

    def install(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}:{BIN}:{os.environ['PATH']}",
            "STAND_IN": str(self.folder),
            "GPM_TUNE_STORAGE": str(self.storage),
            "SLURM_JOB_ID": JOB,
            "SLURM_CPUS_ON_NODE": "2",
            "SLURM_NNODES": "1",
            **more,
        }

    def sbatch(self, study: Path, inside: Inside | None = None, **more: str) -> subprocess.Popen[bytes]:
        """Start the script, as Slurm does, on the first node."""
        variables = [f"{name}={value}" for name, value in self.environment(**more).items()]
        command = ["env", *variables, "bash", "-c", 'echo $$ > "$STAND_IN/pid"; exec bash "$@"', "_"]
        command += [str(self.script), str(study)]
        with self.log.open("a") as log:
            return subprocess.Popen(
                inside(*command) if inside else command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def requeues(self) -> list[str]:
        path = self.folder / "requeues"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, what: str | Condition, process: subprocess.Popen[bytes], seconds: float = 180) -> None:
        """Wait until the job's log has a pattern, or something holds."""
        deadline = time.monotonic() + seconds
        while not (what() if callable(what) else re.search(what, self.log.read_text())):
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def check_study(self, home: Path) -> None:
        """From the storage alone: every trial is there, once, and complete."""
        fetched = gpm_tune("fetch", STUDY, "--storage", self.storage, home=home)
        assert fetched.returncode == 0, fetched.stderr
        tracked = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
        check_accounts(f"sqlite:///{home / 'optuna.db'}", tracked, TRIALS)


@pytest.mark.parametrize("script", ["one_node.sh", "several_nodes.sh"])
def test_slurm_is_asked_to_warn_in_time_and_to_requeue(script):
    asked = options(script)
    assert re.fullmatch(r"B:USR1@(\d+)", asked["signal"])
    grace = int(re.search(r"sleep (\d+)", (SCRIPTS / script).read_text())[1])
    assert int(asked["signal"].partition("@")[2]) >= grace + 60  # Slurm may be a minute late
    assert asked["open-mode"] == "append"
    assert "requeue" in asked
    assert ("exclusive" in asked) == (script == "several_nodes.sh")


@pytest.fixture(params=["one_node.sh", "several_nodes.sh"])
def job(request, tmp_path):
    """A job with a program that ends at SIGINT only; of several nodes there is the head."""
    slurm = Slurm(tmp_path, request.param, **{"sleep 240": "sleep 0.5"})
    slurm.install("gpm-tune", "trap 'exit 130' INT; echo running $*; while :; do sleep 0.1; done")
    slurm.install("ray", 'until [ "$1" = -- ]; do shift; done; shift; "$@"')
    return slurm


def test_a_signal_before_the_limit_stops_the_study_and_requeues_the_job(job):
    process = job.sbatch(Path("study.yaml"))
    job.wait_for("running run study.yaml", process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 0
    time.sleep(1)  # longer than the script would wait
    assert job.requeues() == [f"requeue {JOB}"]


def test_a_job_whose_study_does_not_stop_is_requeued_all_the_same(job):
    until_requeued = 'while [ ! -e "$STAND_IN/requeues" ]; do sleep 0.1; done'
    job.install("gpm-tune", f"trap '' INT; echo running; {until_requeued}")
    process = job.sbatch(Path("study.yaml"))
    job.wait_for("running", process)
    process.send_signal(signal.SIGUSR1)
    process.wait(10)
    assert job.requeues() == [f"requeue {JOB}"]


def test_a_cancelled_job_stops_its_study_and_is_not_requeued(job):
    process = job.sbatch(Path("study.yaml"))
    job.wait_for("running", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 130
    assert job.requeues() == []


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_job_ends_as_its_study_does(job, code):
    job.install("gpm-tune", f"exit {code}")
    assert job.sbatch(Path("study.yaml")).wait(10) == code
    assert job.requeues() == []


def test_a_job_without_storage_says_what_is_missing(job):
    assert job.sbatch(Path("study.yaml"), GPM_TUNE_STORAGE="").wait(10) != 0
    assert "GPM_TUNE_STORAGE: name a folder that all nodes see" in job.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_study_on_one_node_goes_on_on_another_after_the_limit(tmp_path):
    slurm = Slurm(tmp_path, "one_node.sh")
    study = write_chaos_study(tmp_path, TRIALS)
    nodes = [tmp_path / "disk_1", tmp_path / "disk_2"]
    for disk in nodes:
        disk.mkdir()
    job = slurm.sbatch(study, SLURM_TMPDIR=str(nodes[0]))
    slurm.wait_for(r"trial \d: step 800/", job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0, slurm.log.read_text()
    assert slurm.requeues() == [f"requeue {JOB}"]
    assert "interrupted; continue with" in slurm.log.read_text()

    again = slurm.sbatch(study, SLURM_TMPDIR=str(nodes[1]))
    assert again.wait(200) == 0, slurm.log.read_text()
    assert len(slurm.requeues()) == 1
    assert [list(disk.iterdir()) for disk in nodes] == [[], []]
    slurm.check_study(tmp_path / "fetched")


@pytest.mark.slow
def test_trials_have_no_more_cores_than_slurm_gave(tmp_path):
    slurm = Slurm(tmp_path, "one_node.sh")
    study = write_chaos_study(tmp_path, TRIALS, resources={"cpu": 2})
    assert slurm.sbatch(study, SLURM_CPUS_ON_NODE="1").wait(120) == 2
    assert re.search(r"a trial asks for 2 CPU cores, .* has 1\b", slurm.log.read_text())


@pytest.fixture
def network(tmp_path_factory) -> Iterator[Network]:
    with network_of(tmp_path_factory.mktemp("slurm"), "node1", "node2") as network:
        yield network


def trains(host: Host) -> bool:
    return any("Trainable" in line for line in host.processes())


IS_FULL = os.environ.get("GPM_TUNE_CHAOS") == "full"
OBSTACLE = why_not() if IS_FULL else "takes minutes: GPM_TUNE_CHAOS=full"


@pytest.mark.slow
@pytest.mark.launcher
@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
@pytest.mark.timeout(600)
def test_a_study_on_two_nodes_goes_on_after_the_limit(tmp_path, network):
    slurm = Slurm(tmp_path, "several_nodes.sh")
    study = write_chaos_study(tmp_path, TRIALS, resources={"cpu": 1})
    first, second = network.hosts
    nodes = {
        "SLURM_NNODES": "2",
        "SLURM_CPUS_ON_NODE": "1",
        "OTHER_NODES": network.address(second),
        "KEY": str(network.laptop.home / ".ssh" / "id_ed25519"),
    }
    job = slurm.sbatch(study, first.inside, **nodes)
    slurm.wait_for(lambda: trains(first) and trains(second), job)
    slurm.wait_for(r"trial \d: step", job)
    first.run("kill", "-USR1", (tmp_path / "pid").read_text().strip())
    assert job.wait(200) == 0, slurm.log.read_text()
    assert slurm.requeues() == [f"requeue {JOB}"]
    assert "interrupted; continue with" in slurm.log.read_text()
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=1"} <= set((tmp_path / "srun").read_text().split())
    for host in (first, second):
        assert not any("raylet" in line or "gcs_server" in line for line in host.processes())

    again = slurm.sbatch(study, first.inside, **nodes)
    assert again.wait(200) == 0, slurm.log.read_text()
    assert len(slurm.requeues()) == 1
    slurm.check_study(tmp_path / "fetched")
