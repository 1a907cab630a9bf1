"""cluster.yaml brought up by Ray's own code on a simulated EC2: what is asked for, and what is then open."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import boto3
import botocore.client
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import node_provider, utils
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest
from ray.core.generated.instance_manager_pb2 import Instance

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IAM = ROOT / "deploy" / "aws-iam"
MY_ADDRESS = "198.51.100.7/32"
SPOT = {"l4_spot", "a10g_spot", "l40s_spot"}
STORAGE = "s3://my-bucket/gpm-tune"


ANSWERS = {"printenv HOME": "/home/ray", ".Config.Env": '["HOME=/home/ray"]', "command -v": "docker"}


class Node:
    """Answers for the shell and Docker of nodes that do not exist, and keeps what was run there."""

    def __init__(self):
        self.commands = []

    def check_call(self, command, **_):
        self.commands.append(shlex.join(command))

    def check_output(self, command, **_):
        self.check_call(command)
        return next((text for part, text in ANSWERS.items() if part in command[-1]), "").encode()

    def docker_run(self):
        """The words of the command that started the container."""
        (found,) = (command for command in self.commands if "docker run" in command)
        return found.replace("'", " ").replace('"', " ").split()


def read(changes):
    text = (ROOT / "cluster.yaml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return yaml.safe_load(text)


def make_account():
    """What deploy/README.md has made beforehand; the file with it filled in."""
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="gpm-tune", Description="gpm-tune", VpcId=vpc)["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]},
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": MY_ADDRESS}]},
        ],
    )
    for role in ("head", "worker"):
        name = f"gpm-tune-{role}"
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=(IAM / "trust.json").read_text())
        iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=(IAM / f"{role}.json").read_text())
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    iam.create_policy(PolicyName="laptop", PolicyDocument=(IAM / "laptop.json").read_text())
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    return read({"sg-CHANGE": group, "ami-CHANGE": image, "s3://CHANGE-bucket/gpm-tune": STORAGE})


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """`ray up`, and a worker of each type launched and set up as the head's autoscaler does; `ray down`."""
    home, project = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("project")
    (home / ".ray").mkdir()
    (home / "gpm-tune").mkdir()
    with pytest.MonkeyPatch.context() as patch, mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        for name, value in {
            "HOME": home,
            "AWS_ACCESS_KEY_ID": "simulated",
            "AWS_SECRET_ACCESS_KEY": "simulated",
            "AWS_DEFAULT_REGION": "us-east-1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }.items():
            patch.setenv(name, str(value))
        patch.chdir(project)
        patch.setattr("time.sleep", lambda _: None)
        for cached in (utils.resource_cache, utils.client_cache, aws_config._get_subnets_or_die):
            cached.cache_clear()
        written = make_account()

        calls, by = defaultdict(list), {"who": "laptop"}
        really_call = botocore.client.BaseClient._make_api_call

        def call(client, operation, parameters):
            calls[by["who"]].append((f"{client.meta.service_model.service_name}:{operation}", parameters))
            return really_call(client, operation, parameters)

        patch.setattr(botocore.client.BaseClient, "_make_api_call", call)
        config = commands._bootstrap_config(copy.deepcopy(written), no_config_cache=True)
        head, workers = Node(), {}
        commands.get_or_create_head_node(config, "cluster.yaml", False, False, True, None, _runner=head)

        by["who"] = "head"
        provider = node_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
        _, file = commands._set_up_config_for_head_node(copy.deepcopy(config), provider, False)
        on_head = json.loads(Path(file.name).read_text())
        for kind in set(config["available_node_types"]) - {"head"}:
            workers[kind] = Node()
            launch(provider, on_head, kind, workers[kind])

        by["who"] = "test"
        reservations = boto3.client("ec2").describe_instances()["Reservations"]
        instances = [instance for reservation in reservations for instance in reservation["Instances"]]
        groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]

        by["who"] = "laptop"
        provider.terminate_nodes([instance["InstanceId"] for instance in instances])
        by["who"] = "head"
        provider.terminate_nodes([instance["InstanceId"] for instance in instances])

        by["who"] = "test"
        yield SimpleNamespace(
            written=written,
            config=config,
            calls=calls,
            head=head,
            workers=workers,
            instances=instances,
            groups=groups,
        )
        for cached in (utils.resource_cache, utils.client_cache, aws_config._get_subnets_or_die):
            cached.cache_clear()


def launch(provider, config, kind, node):
    """As Ray's autoscaler launches a node and sets it up."""
    tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_USER_NODE_TYPE: kind}
    created = provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    provider.non_terminated_nodes({})
    instance = Instance(instance_type=kind, cloud_instance_id=next(iter(created)))
    RayInstaller(provider, AutoscalingConfig(config), node).install_ray(instance, "10.0.0.1")


def tags_of(instance):
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def launches(cloud):
    """What every launch asked for, by node type."""
    found = {}
    for name, asked in [*cloud.calls["laptop"], *cloud.calls["head"]]:
        if name == "ec2:RunInstances":
            (specification,) = asked["TagSpecifications"]
            found[tags_of(specification)[TAG_RAY_USER_NODE_TYPE]] = asked
    return found


def test_every_type_is_asked_for_as_the_file_has_it(cloud):
    asked = launches(cloud)
    assert asked.keys() == cloud.written["available_node_types"].keys()
    for kind, written in cloud.written["available_node_types"].items():
        for key, value in written["node_config"].items():
            if key != "TagSpecifications":
                assert asked[kind][key] == value, (kind, key)


def test_head_is_on_demand_and_workers_are_spot(cloud):
    spot = {kind for kind, asked in launches(cloud).items() if "InstanceMarketOptions" in asked}
    assert spot == SPOT
    assert launches(cloud)["l4_spot"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_instances_are_what_was_asked_for(cloud):
    made = {tags_of(instance)[TAG_RAY_USER_NODE_TYPE]: instance for instance in cloud.instances}
    assert made.keys() >= {"head", "l4_on_demand"}
    for kind, instance in made.items():
        written = cloud.written["available_node_types"][kind]["node_config"]
        assert instance["InstanceType"] == written["InstanceType"]
        assert (instance.get("InstanceLifecycle") == "spot") == (kind in SPOT)
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == written["SecurityGroupIds"]
        assert tags_of(instance) | {"project": "gpm-tune", "ray-cluster-name": "gpm-tune"} == tags_of(
            instance
        )
    profile = made["head"]["IamInstanceProfile"]["Arn"]
    assert profile.endswith("instance-profile/gpm-tune-head")


def test_nothing_is_open_to_the_world(cloud):
    assert {group["GroupName"] for group in cloud.groups} == {"default", "gpm-tune"}
    for group in cloud.groups:
        for rule in group["IpPermissions"]:
            ranges = [found["CidrIp"] for found in rule["IpRanges"]] + rule["Ipv6Ranges"]
            assert not ranges or (ranges == [MY_ADDRESS] and rule["FromPort"] == rule["ToPort"] == 22)


def test_ray_knows_what_the_nodes_have(cloud):
    resources = {kind: found["resources"] for kind, found in cloud.config["available_node_types"].items()}
    assert resources["head"] == {"CPU": 0, "GPU": 0}
    gpus = {"l4_spot": "L4", "a10g_spot": "A10G", "l40s_spot": "L40S", "l4_on_demand": "L4"}
    for kind, gpu in gpus.items():
        assert resources[kind] | {"CPU": 8, "GPU": 1, f"accelerator_type:{gpu}": 1} == resources[kind]


def test_every_container_has_the_environment(cloud):
    for node in (cloud.head, *cloud.workers.values()):
        words = node.docker_run()
        for setting in (
            "GPM_TUNE_STORAGE=" + STORAGE,
            "RAY_AUTH_MODE=token",
            "GPM_TUNE_DATA=/home/ray/gpm-data",
        ):
            assert words[words.index(setting) - 1] == "-e"
        assert "/tmp/ray_tmp_mount/gpm-tune/~/.ray:/home/ray/.ray" in words
        assert "--net=host" in words
    tracked = [
        "MLFLOW_TRACKING_URI=http://127.0.0.1:5000" in node.docker_run() for node in cloud.workers.values()
    ]
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:5000" in cloud.head.docker_run()
    assert not any(tracked)


def test_rights_are_those_that_ray_uses(cloud):
    for who in ("laptop", "head"):
        used = {name for name, _ in cloud.calls[who]}
        statements = json.loads((IAM / f"{who}.json").read_text())["Statement"]
        granted = set()
        for statement in statements:
            actions = statement["Action"]
            granted |= {actions} if isinstance(actions, str) else set(actions)
        assert {right for right in granted if right.startswith("ec2:")} == used


@pytest.mark.usefixtures("cloud")
def test_unedited_file_fails_before_anything_is_launched(capsys):
    with pytest.raises(AssertionError):
        commands._bootstrap_config(read({}), no_config_cache=True)
    assert "Failed to detect a security group" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_unnamed_bucket_fails_with_a_message(name):
    check = yaml.safe_load((ROOT / name).read_text())["setup_commands"][0]

    def run(storage):
        environment = {"GPM_TUNE_STORAGE": storage}
        return subprocess.run(
            ["bash", "-c", f"true && ({check})"], env=environment, capture_output=True, text=True, check=False
        )

    refused = run("s3://CHANGE-bucket/gpm-tune")
    assert refused.returncode == 1
    assert f"{Path(name).name}, docker.run_options: set GPM_TUNE_STORAGE" in refused.stderr
    assert run(STORAGE).returncode == 0


def launched(cloud, unavailable=(), **more):
    """How many nodes of each type Ray's autoscaler launches for eight trials."""
    config = AutoscalingConfig(cloud.config | {"file_mounts": {}}, skip_content_hash=True)
    trial = ResourceRequestUtil.make({"CPU": 2.0, "GPU": 0.25, **more})
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        disable_launch_config_check=True,
        gang_resource_requests=[GangResourceRequest(requests=[trial]) for _ in range(8)],
        recoverable_resource_availabilities=dict.fromkeys(unavailable, 0.0),
    )
    reply = ResourceDemandScheduler().schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_the_cheapest_type_that_is_to_be_had_is_launched(cloud):
    assert launched(cloud) == {"l4_spot": 2}
    assert launched(cloud, ["l4_spot"]) == {"a10g_spot": 2}
    assert launched(cloud, SPOT) == {"l4_on_demand": 2}
    assert launched(cloud, **{"accelerator_type:L40S": 0.001}) == {"l40s_spot": 2}
