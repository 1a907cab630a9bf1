"""The manifests: valid for KubeRay, read by Ray's autoscaler as meant; jobs run again where that helps."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray._private.label_utils import parse_node_labels_string
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "kubernetes"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))
SCHEMAS = Path(__file__).parent / "schemas"
DEFINITIONS = {
    **json.loads((SCHEMAS / "kubernetes-1.32.json").read_text()),
    **yaml.safe_load((SCHEMAS / "kuberay-1.6.yaml").read_text()),
}
BIN = Path(sys.prefix) / "bin"
A_TRIAL = {"CPU": 2, "GPU": 0.25}
TRIALS = 4  # of a pod


def documents(text: str | None = None) -> list[dict]:
    texts = [path.read_text() for path in MANIFESTS] if text is None else [text]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def complaints(document: dict) -> list[str]:
    """What Kubernetes would refuse, or drop in silence."""
    schema = {"$ref": f"#/definitions/{document['kind']}", "definitions": DEFINITIONS}
    found = jsonschema.Draft7Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def named(kind: str) -> dict:
    (document,) = (document for document in documents() if document["kind"] == kind)
    return document


def cluster_spec(document: dict) -> dict:
    return document["spec"].get("rayClusterSpec", document["spec"])


def ray_clusters():
    return [
        pytest.param(cluster_spec(document), id=document["kind"])
        for document in documents()
        if document["kind"] in ("RayCluster", "RayJob")
    ]


def pod(group: dict) -> dict:
    return group["template"]["spec"]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_manifests_are_of_known_kinds():
    kinds = {(document["apiVersion"], document["kind"]) for document in documents()}
    assert kinds == {
        ("v1", "ConfigMap"),
        ("v1", "ServiceAccount"),
        ("v1", "PersistentVolumeClaim"),
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayJob"),
    }
    assert all(document["metadata"]["name"] for document in documents())


def test_kubernetes_takes_every_field():
    assert [complaints(document) for document in documents()] == [[]] * len(documents())


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("rayjob", "backoffLimit: 5", "backOffLimit: 5"),
        ("rayjob", "activeDeadlineSeconds: 172800", "activeDeadlineSecond: 172800"),
        ("rayjob", "activeDeadlineSeconds: 172800", 'activeDeadlineSeconds: "172800"'),
        ("rayjob", "readOnly: true", "readonly: true"),
        ("rayjob", "configMap:", "configmap:"),
        ("rayjob", "mode: token", "mode: tokens"),
        ("raycluster", "tolerations:", "toleration:"),
        ("raycluster", "operator: Exists", "op: Exists"),
        ("raycluster", "nodeSelector:", "nodeSelectors:"),
        ("raycluster", 'gpm-tune/usd-per-hour: "0.50"', "gpm-tune/usd-per-hour: 0.50"),
        ("raycluster", 'GPU: "1"', "GPU: 1"),
        ("raycluster", "maxReplicas: 8", "maxReplica: 8"),
        ("raycluster", "groupName: l4\n", "name: l4\n"),
        ("raycluster", "idleTimeoutSeconds", "idleTimeoutMinutes"),
        ("raycluster", "claimName", "claim"),
        ("settings", "data:", "datas:"),
        ("settings", "accessModes", "accessMode"),
    ],
)
def test_misspelt_fields_are_found(file, old, new):
    text = (DEPLOY / f"{file}.yaml").read_text()
    assert old in text
    assert any(complaints(document) for document in documents(text.replace(old, new)))


@pytest.mark.parametrize("spec", ray_clusters())
def test_cluster_on_kubernetes(spec):
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert head["serviceType"] == "ClusterIP"
    assert len({group["groupName"] for group in workers}) >= 2
    for group in (head, *workers):
        for container in pod(group)["containers"]:
            assert re.fullmatch(rf"CHANGE-registry/gpm-tune:{pinned('ray')}-py\d+", container["image"])
            assert container["envFrom"] == [{"configMapRef": {"name": "gpm-tune"}}]
        gpus = pod(group)["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        assert gpus == (None if group is head else "1")


@pytest.mark.parametrize("spec", ray_clusters())
def test_autoscaler_can_place_trials_before_any_pod_runs(spec):
    """What Ray's own autoscaler reads from the manifest, and KubeRay's two rules about it."""
    resource = {"metadata": {"name": "gpm-tune", "namespace": "default"}, "spec": spec}
    kinds = dict(_derive_autoscaling_config_from_ray_cr(resource)["available_node_types"])
    head = kinds.pop("headgroup")
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    for name, kind in kinds.items():
        assert kind["min_workers"] == 0 < kind["max_workers"]
        assert kind["resources"][f"accelerator_type:{name.upper()}"] == 1
        assert all(TRIALS * amount == kind["resources"][what] for what, amount in A_TRIAL.items())
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        price = group["labels"]["gpm-tune/usd-per-hour"]
        assert parse_node_labels_string(f"gpm-tune/usd-per-hour={price}") == group["labels"]
        assert 0 < float(price) < 10
        # KubeRay refuses a group that names its resources twice, or its labels among the parameters.
        start = group.get("rayStartParams", {})
        assert not ("resources" in group and start.keys() & {"num-cpus", "num-gpus", "memory", "resources"})
        assert "labels" not in start


@pytest.mark.parametrize("spec", ray_clusters())
def test_nodes_are_chosen_by_labels_that_exist_before_them(spec):
    for group in spec["workerGroupSpecs"]:
        assert "nvidia.com/gpu.product" not in pod(group)["nodeSelector"]
        tolerated = {toleration["key"] for toleration in pod(group)["tolerations"]}
        assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "karpenter.sh/capacity-type"} <= tolerated


@pytest.mark.parametrize("spec", ray_clusters())
def test_what_pods_refer_to_is_there(spec):
    made = {(document["kind"], document["metadata"]["name"]) for document in documents()}
    made.add(("ConfigMap", "gpm-tune-study"))  # the user's study; rayjob.yaml and README.md have the command
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    referred = {("ConfigMap", "gpm-tune")} | {
        ("ServiceAccount", pod(group)["serviceAccountName"]) for group in groups
    }
    for volume in pod(spec["headGroupSpec"])["volumes"]:
        if "configMap" in volume:
            referred.add(("ConfigMap", volume["configMap"]["name"]))
        else:
            referred.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    assert referred <= made


def test_job_runs_the_study_that_is_mounted():
    spec = named("RayJob")["spec"]
    script, study = map(Path, spec["entrypoint"].split())
    assert os.access(ROOT / script.relative_to("/home/ray/gpm-tune"), os.X_OK)
    (mount,) = pod(spec["rayClusterSpec"]["headGroupSpec"])["containers"][0]["volumeMounts"]
    assert study.parent == Path(mount["mountPath"])
    command = f"kubectl create configmap gpm-tune-study --from-file={study.name}="
    assert command in (DEPLOY / "rayjob.yaml").read_text()
    assert command in (ROOT / "deploy" / "README.md").read_text()
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 3600


def test_only_pods_of_the_two_accounts_take_the_role():
    accounts = [document for document in documents() if document["kind"] == "ServiceAccount"]
    subjects = [f"system:serviceaccount:default:{account['metadata']['name']}" for account in accounts]
    trust = {
        kind: json.loads((ROOT / "deploy" / "aws-iam" / f"trust-{kind}.json").read_text())["Statement"]
        for kind in ("oidc", "pod-identity")
    }
    (oidc,) = trust["oidc"]
    assert oidc["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert oidc["Condition"] == {
        "StringEquals": {"CHANGE-oidc:aud": "sts.amazonaws.com", "CHANGE-oidc:sub": subjects}
    }
    assert oidc["Principal"] == {"Federated": "arn:aws:iam::CHANGE-account:oidc-provider/CHANGE-oidc"}
    (pods,) = trust["pod-identity"]
    assert pods["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert pods["Action"] == ["sts:AssumeRole", "sts:TagSession"]


class PodIdentityAgent(http.server.BaseHTTPRequestHandler):
    """Gives credentials to the pod that shows its token, as the agent on each node of EKS."""

    def do_GET(self):
        is_known = self.headers["Authorization"] == "the-pods-token"
        self.server.answers.append(is_known)
        given = {
            "AccessKeyId": "ASIAPOD",
            "SecretAccessKey": "x",
            "Token": "x",
            "Expiration": "2099-01-01T00:00:00Z",
        }
        self.send_response(200 if is_known else 403)
        self.end_headers()
        self.wfile.write(json.dumps(given).encode() if is_known else b"")


@pytest.fixture
def pod_environment(tmp_path):
    """What EKS sets in a pod whose account has a Pod Identity, and the agent's answers; S3 is simulated."""
    (tmp_path / "token").write_text("the-pods-token")
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), PodIdentityAgent) as agent:
        agent.answers = []
        threading.Thread(target=agent.serve_forever, daemon=True).start()
        moto.start()
        host, port = moto.get_host_and_port()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{agent.server_port}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }
        yield environment, agent.answers
        moto.stop()
        agent.shutdown()


def test_storage_takes_the_credentials_of_a_pod_identity(pod_environment):
    """A pod has no others: no key, no profile, no instance's role."""
    program = """
import boto3
from gpm_tune import locations
boto3.client("s3").create_bucket(Bucket="my-bucket")
locations.write("s3://my-bucket/gpm-tune/x", b"kept")
print(locations.read("s3://my-bucket/gpm-tune/x").decode())
"""
    environment, answers = pod_environment
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "kept\n", result.stderr
    assert answers.count(True) > 1  # boto3 asks once, and Arrow has a client of its own


@pytest.fixture
def jobs():
    """A head that takes jobs, as the operator's, at ports that nobody else here has."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r"))  # sockets have short paths
        gcs, dashboard, agent, client = free_ports(4)
        command = [BIN / "ray", "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder}"]
        command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client}", f"--num-cpus={len(HOW_JOBS_END)}"]
        command += ["--disable-usage-stats"]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test"}
        environment = os.environ | token | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        head = stack.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        stack.callback(head.terminate)
        headers = {"Authorization": f"Bearer {token['RAY_AUTH_TOKEN']}"}
        yield retry(JobSubmissionClient, f"http://127.0.0.1:{dashboard}", headers=headers)


def free_ports(count):
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


# KubeRay 1.6 makes a new cluster after FAILED only; SUCCEEDED and STOPPED end the RayJob.
HOW_JOBS_END = {
    0: JobStatus.SUCCEEDED,
    1: JobStatus.STOPPED,
    2: JobStatus.STOPPED,
    3: JobStatus.FAILED,
    70: JobStatus.STOPPED,
    127: JobStatus.STOPPED,
    130: JobStatus.STOPPED,
    137: JobStatus.FAILED,
    143: JobStatus.STOPPED,
}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_only_a_lost_head_or_a_killed_driver_is_run_again(jobs, tmp_path):
    """The entrypoint as a real Ray job, with a program that ends as it is told to."""
    program = tmp_path / "gpm-tune"
    program.write_text('#!/bin/sh\necho "called with $*"\nexit "$CODE"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{BIN}:{os.environ['PATH']}"
    submitted = {
        code: retry(
            jobs.submit_job,
            entrypoint=f"{DEPLOY / 'run_study.sh'} /home/ray/study/study.yaml",
            runtime_env={"env_vars": {"PATH": path, "CODE": str(code)}},
        )
        for code in HOW_JOBS_END
    }
    assert {code: how_it_ends(jobs, job) for code, job in submitted.items()} == HOW_JOBS_END
    for code, job in submitted.items():
        log = jobs.get_job_logs(job)
        assert "called with run /home/ray/study/study.yaml --address auto" in log
        assert (f"exit code {code} (" in log) == (HOW_JOBS_END[code] == JobStatus.STOPPED)


def retry(call, *arguments, seconds=60, **named):
    """Call it until the head has started what it needs."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call(*arguments, **named)
        except (ConnectionError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def how_it_ends(jobs, job, seconds=100):
    deadline = time.monotonic() + seconds
    while not (status := jobs.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, jobs.get_job_logs(job)
        time.sleep(0.2)
    return status
