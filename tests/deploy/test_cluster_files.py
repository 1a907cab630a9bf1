"""The files that describe clusters: valid for Ray, no key misspelt, and what all of them promise."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray._private.label_utils import parse_node_labels_json, parse_node_labels_string
from ray.autoscaler._private.command_runner import SSHCommandRunner
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FOR_RAY_UP = [ROOT / "cluster.yaml", *sorted(DEPLOY.glob("*.yaml"))]
IN_CLOUDS = [path for path in FOR_RAY_UP if path.name in ("cluster.yaml", "gcp.yaml")]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
ALL = [*FOR_RAY_UP, *MANIFESTS, DEPLOY / "Dockerfile", *sorted((DEPLOY / "aws-iam").glob("*.json"))]

# Ray accepts any key of a provider and passes node_config on unseen.
OURS = {"type", "module", "minutes_without_ray", "hours_without_study"}
PROVIDER_KEYS = {
    "aws": OURS | {"region", "availability_zone", "cache_stopped_nodes"},
    "gcp": OURS | {"region", "availability_zone", "project_id"},
    "local": {"type", "head_ip", "worker_ips"},
}
TOKEN_MOUNTS = ("~/.ray", "~/.ray/auth_token")  # Docker mounts folders only
GCP_NODE_KEYS = {"machineType", "serviceAccounts", "disks", "networkInterfaces", "labels", "scheduling"}
GCP_SCHEDULING_KEYS = {"provisioningModel", "instanceTerminationAction", "onHostMaintenance"}


def named(paths):
    return [pytest.param(path, id=path.name) for path in paths]


def load(path):
    return yaml.safe_load(path.read_text())


def cloud(config):
    """Ray's name for the provider, or the last folder of ours."""
    provider = config["provider"]
    return provider["module"].split(".")[-2] if provider["type"] == "external" else provider["type"]


def settled(path):
    """Without comments."""
    return re.sub(r"(^|\s)#.*", "", path.read_text(), flags=re.MULTILINE)


def misspelt(config):
    """Keys that no provider knows, though Ray would take them."""
    provider = cloud(config)
    found = list(config["provider"].keys() - PROVIDER_KEYS[provider])
    for kind in config.get("available_node_types", {}).values():
        node = dict(kind["node_config"])
        if provider == "aws":
            node.pop("SubnetIds", None)
            found += aws_complaints(node)
        elif provider == "gcp":
            found += node.keys() - GCP_NODE_KEYS
            found += node.get("scheduling", {}).keys() - GCP_SCHEDULING_KEYS
    return found


def aws_complaints(node):
    """What EC2's own description says against a request for instances."""
    model = botocore.session.get_session().get_service_model("ec2")
    request = {**node, "MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(request, model.operation_model("RunInstances").input_shape)
    return [report.generate_report()] if report.has_errors() else []


def pinned(package):
    return re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def image_tag():
    """Ray as constraints.txt has it, Python as the Makefile has it."""
    python = re.search(r"^PYTHON \?= python(\d)\.(\d+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return f"{pinned('ray')}-py{python[1]}{python[2]}"


@pytest.mark.parametrize("path", named(FOR_RAY_UP))
def test_ray_takes_the_file(path):
    validate_config(prepare_config(load(path)))
    assert misspelt(load(path)) == []


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (ROOT / "cluster.yaml", "cache_stopped_nodes", "cache_stoped_nodes"),
        (ROOT / "cluster.yaml", "InstanceMarketOptions", "InstanceMarketOption"),
        (ROOT / "cluster.yaml", "MarketType", "Market"),
        (ROOT / "cluster.yaml", "VolumeSize: 200", "VolumeSize: 200 GB"),
        (DEPLOY / "gcp.yaml", "networkInterfaces", "networkInterface"),
        (DEPLOY / "gcp.yaml", "provisioningModel", "provisioning"),
    ],
)
def test_misspelt_keys_that_ray_accepts_are_found(path, old, new):
    config = yaml.safe_load(path.read_text().replace(old, new))
    validate_config(prepare_config(dict(config)))
    assert misspelt(config)


@pytest.mark.parametrize("path", named(IN_CLOUDS))
def test_head_has_no_gpu_and_workers_start_from_none(path):
    config = load(path)
    kinds = dict(config["available_node_types"])
    head = kinds.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "scheduling" not in head["node_config"]
    assert all(
        kind["min_workers"] == 0 < kind["max_workers"] <= config["max_workers"] for kind in kinds.values()
    )
    machine = {"aws": "InstanceType", "gcp": "machineType"}[cloud(config)]
    spot = [kind for name, kind in kinds.items() if name.endswith("_spot")]
    assert len({kind["node_config"][machine] for kind in spot}) >= 2
    cheapest = min(kind["priority"] for kind in spot)
    assert all(kind["priority"] < cheapest for kind in kinds.values() if kind not in spot)
    assert 0 < config["idle_timeout_minutes"] <= 15


@pytest.mark.parametrize("path", named(IN_CLOUDS))
def test_every_node_has_a_price_that_ray_takes(path):
    for kind in load(path)["available_node_types"].values():
        (label,) = kind["labels"].items()
        parse_node_labels_json(json.dumps(kind["labels"]))  # as `ray start` reads what `ray up` hands to it
        parse_node_labels_string("=".join(label))
        assert label[0] == "gpm-tune/usd-per-hour"
        assert 0.05 < float(label[1]) < 5


def test_disks_are_of_a_kind_that_g2_machines_have():
    config = load(DEPLOY / "gcp.yaml")
    for kind in config["available_node_types"].values():
        for disk in kind["node_config"]["disks"]:
            zone = config["provider"]["availability_zone"]
            assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"


@pytest.mark.parametrize("path", named(IN_CLOUDS))
def test_each_cloud_has_the_same_commands_and_containers(path):
    """But for the storage's kind and what a client of the cloud needs."""
    ours, reference = load(path), load(ROOT / "cluster.yaml")
    for key in (
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "file_mounts",
        "rsync_exclude",
        "rsync_filter",
    ):
        assert ours[key] == reference[key], key
    assert ours["docker"]["run_options"][1:] == reference["docker"]["run_options"][1:]
    assert ours["docker"]["head_run_options"] == reference["docker"]["head_run_options"]


def test_workers_cannot_launch_machines():
    aws, gcp = (load(path)["available_node_types"] for path in IN_CLOUDS)
    assert {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in aws.values()} == {
        "gpm-tune-head",
        "gpm-tune-worker",
    }
    (head,) = gcp.pop("head")["node_config"]["serviceAccounts"]
    for kind in gcp.values():
        (account,) = kind["node_config"]["serviceAccounts"]
        assert account["email"] != head["email"]
        assert account["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]


@pytest.mark.parametrize("path", named(IN_CLOUDS))
def test_image_has_the_pinned_ray_and_python(path):
    assert load(path)["docker"]["image"] == f"rayproject/ray:{image_tag()}-cu128"
    assert load(path)["docker"]["head_image"] == f"rayproject/ray:{image_tag()}-cpu"


def test_docker_image_is_built_from_the_same():
    assert f"FROM rayproject/ray:{image_tag()}-cu128\n" in (DEPLOY / "Dockerfile").read_text()
    assert "--constraint /home/ray/gpm-tune/constraints.txt" in (DEPLOY / "Dockerfile").read_text()


@pytest.mark.parametrize("path", named([*IN_CLOUDS, DEPLOY / "kubernetes" / "settings.yaml"]))
def test_storage_is_named_in_one_place(path):
    assert len(re.findall(r"(s3|gs)://", settled(path))) == 1
    assert len(re.findall(r"GPM_TUNE_STORAGE[=:] ?(s3|gs)://CHANGE-bucket/gpm-tune", settled(path))) == 1


@pytest.mark.parametrize("path", named(FOR_RAY_UP))
def test_services_of_the_head_listen_on_its_loopback(path):
    commands = "\n".join(load(path)["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "mlflow server --host 127.0.0.1 --port 5000" in commands


@pytest.mark.parametrize("path", named(FOR_RAY_UP))
def test_ray_asks_for_a_token(path):
    assert "RAY_AUTH_MODE=token" in settled(path)
    assert any(mount == (own, own) for mount in load(path)["file_mounts"].items() for own in TOKEN_MOUNTS)


@pytest.mark.parametrize("path", named(ALL))
def test_nothing_is_open_to_all_addresses(path):
    text = settled(path)
    if path.name == "rayjob.yaml":  # inside the Kubernetes cluster, with the token
        text = text.replace("dashboard-host: 0.0.0.0", "")
    assert not re.search(r"0\.0\.0\.0|::/0|LoadBalancer|NodePort|enableIngress: true", text)


@pytest.mark.parametrize("path", named(ALL))
def test_no_secrets(path):
    patterns = [
        r"AKIA[0-9A-Z]{16}",  # AWS
        r"-----BEGIN",
        r"(?i)(secret|password|auth_token|access_key)\w*[\"']?\s*[:=]\s*[^\s$~]",
        r"\b[0-9a-f]{32,}\b",
        r"://[^/\s]+:[^/\s]+@",
    ]
    assert [pattern for pattern in patterns if re.search(pattern, settled(path))] == []


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
@pytest.mark.parametrize("path", named(IN_CLOUDS))
def test_the_project_is_copied_without_what_can_be_made_again(path, tmp_path):
    config = load(path)
    project = tmp_path / "project"
    wanted = [
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "gpm_tune/data/mnist.py",
        "search_spaces/a.yaml",
    ]
    unwanted = [
        ".git/config",
        ".venv/bin/python",
        "data/MNIST/raw/x",
        "gpm-runs/mlflow.db",
        "gpm_tune/__pycache__/a",
    ]
    for name in [*wanted, *unwanted]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    shutil.copy(ROOT / ".gitignore", project)
    assert config["file_mounts"]["~/gpm-tune"] == "."
    filters = SSHCommandRunner._create_rsync_filter_args(None, config)
    subprocess.run(["rsync", "-a", *filters, f"{project}/", f"{tmp_path / 'node'}/"], check=True)
    copied = {
        file.relative_to(tmp_path / "node").as_posix()
        for file in (tmp_path / "node").rglob("*")
        if file.is_file()
    }
    assert copied == {*wanted, ".gitignore"}


# Rights on AWS


def actions(policy):
    statements = json.loads((DEPLOY / "aws-iam" / f"{policy}.json").read_text())["Statement"]
    lists = [[found] if isinstance(found := statement["Action"], str) else found for statement in statements]
    return {action for found in lists for action in found}


def test_every_right_has_its_reason():
    rows = [
        line.strip("|").split("|") for line in readme().splitlines() if re.match(r"\| `\w+:\w+` \|", line)
    ]
    assert all(len(row) == 5 and row[4].strip() for row in rows)
    for column, policy in enumerate(("laptop", "head", "worker"), start=1):
        granted = [row[0].strip(" `") for row in rows if row[column].strip() == "x"]
        assert sorted(granted) == sorted(actions(policy))


@pytest.mark.parametrize(
    ("policy", "most"),
    [("laptop", 6_144), ("head", 10_240), ("worker", 10_240)],  # a managed policy; all inline ones of a role
)
def test_policies_are_as_short_as_aws_wants_them(policy, most):
    text = (DEPLOY / "aws-iam" / f"{policy}.json").read_text().replace("CHANGE-bucket", "b" * 63)
    assert len("".join(text.split())) <= most


@pytest.mark.parametrize("policy", ["laptop", "head", "worker"])
def test_rights_are_for_one_cluster_and_one_folder(policy):
    for statement in json.loads((DEPLOY / "aws-iam" / f"{policy}.json").read_text())["Statement"]:
        action, resource = statement["Action"], json.dumps(statement["Resource"])
        if action in ("ec2:TerminateInstances", "ec2:CreateTags") or statement["Sid"] == "Launch":
            assert (
                "ray-cluster-name" in json.dumps(statement["Condition"]) or statement["Sid"] == "TagAtLaunch"
            )
        if action == "iam:PassRole":
            assert resource == {"laptop": '"arn:aws:iam::*:role/gpm-tune-head"'}.get(
                policy, '"arn:aws:iam::*:role/gpm-tune-worker"'
            )
        if "s3:" in json.dumps(action):
            assert "arn:aws:s3:::CHANGE-bucket" in resource
        if resource == '"*"':
            assert "Describe" in json.dumps(action)
        assert "*" not in json.dumps(action)


def readme():
    return (DEPLOY / "README.md").read_text()


def test_the_documentation_replaces_every_placeholder():
    """What sed does not, the files ask for where it is."""
    placeholders = set()
    for path in [*IN_CLOUDS, *MANIFESTS, *(DEPLOY / "aws-iam").glob("*.json")]:
        placeholders |= set(re.findall(r"(?:\w+-)?CHANGE(?:-\w+)?", settled(path)))
    by_hand = {"CHANGE"}  # gcp.yaml's sourceImage
    pages = readme() + (ROOT / "docs" / "howto" / "first_hour_aws.md").read_text()
    assert placeholders - by_hand == set(re.findall(r"s/((?:\w+-)?CHANGE(?:-\w+)?)/", pages))
