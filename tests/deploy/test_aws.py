"""cluster.yaml brought up by Ray's own code on a simulated EC2: what is asked for, and what is then open."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import shlex
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import boto3
import botocore.client
import botocore.exceptions
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.constants import RAY_AUTOSCALER_AVAILABILITY_RECOVERY_S
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2 import autoscaler as ray_autoscaler
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.autoscaler.v2.instance_manager.subscribers import cloud_resource_monitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import Stats
from ray.autoscaler.v2.utils import ClusterStatusParser, ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import (
    ClusterResourceState,
    GangResourceRequest,
    GetClusterStatusReply,
    NodeState,
    NodeStatus,
)
from ray.core.generated.instance_manager_pb2 import Instance

from gpm_tune.study.cluster.machines.aws import Provider

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
        provider = Provider(config["provider"], config["cluster_name"])
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


def test_workers_end_themselves_and_the_head_where_it_is_asked_to(cloud):
    scripts = {
        kind: base64.b64decode(asked["UserData"]).decode()
        for kind, asked in launches(cloud).items()
        if "UserData" in asked
    }
    assert scripts.keys() == launches(cloud).keys() - {"head"}
    assert all(script.startswith("#!/bin/sh\nsystemd-run ") for script in scripts.values())
    assert all(script.endswith(" watch 30 -x raylet\n") for script in scripts.values())
    assert all(
        asked["InstanceInitiatedShutdownBehavior"] == "terminate" for asked in launches(cloud).values()
    )


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


# What EC2 refuses

L4, A10G, L40S = (f"{family}.2xlarge" for family in ("g6", "g5", "g6e"))
SPOT_MACHINES = [(L4, "spot"), (A10G, "spot"), (L40S, "spot")]


class AtOnce:
    """Runs what Ray's autoscaler would leave to threads."""

    def submit(self, function, *arguments):
        function(*arguments)


class Cluster:
    """Ray's autoscaler on the head of a cluster whose trials wait for GPUs, and an EC2 that refuses."""

    def __init__(self, config, patch):
        self.config = copy.deepcopy(config) | {"file_mounts": {}, "cluster_name": "scarce"}
        self.config["provider"]["disable_node_updaters"] = True
        self.trials, self.refused, self.granted = 0, {}, 8
        self.asked, self.now, self.version = [], time.time(), 0
        really_call = botocore.client.BaseClient._make_api_call

        def call(client, operation, parameters):
            if operation == "RunInstances":
                market = "spot" if "InstanceMarketOptions" in parameters else "on demand"
                self.asked.append((parameters["InstanceType"], market, parameters["SubnetId"]))
                if code := self.refused.get((parameters["InstanceType"], market)):
                    answer = {"Error": {"Code": code, "Message": "Not now"}}
                    raise botocore.exceptions.ClientError(answer, operation)
                count = min(parameters["MaxCount"], self.granted)  # moto launches MinCount
                parameters = parameters | {"MinCount": count, "MaxCount": count}
            return really_call(client, operation, parameters)

        patch.setattr(botocore.client.BaseClient, "_make_api_call", call)
        patch.setattr(cloud_resource_monitor, "time", SimpleNamespace(time=lambda: self.now))
        patch.setattr(ray_autoscaler, "get_cluster_resource_state", lambda _: self.ray_state())
        self.provider = Provider(self.config["provider"], "scarce")
        patch.setattr(ray_autoscaler, "_get_node_provider", lambda *_: self.provider)
        tags = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: "head"}
        head_config = self.config["available_node_types"]["head"]["node_config"]
        (self.head,) = self.provider.create_node(head_config, tags, 1)
        reader = SimpleNamespace(
            get_cached_autoscaling_config=lambda: AutoscalingConfig(self.config, skip_content_hash=True),
            refresh_cached_autoscaling_config=lambda: None,
        )
        gcs = SimpleNamespace(address="10.0.0.1:6379")
        self.autoscaler = ray_autoscaler.Autoscaler("session", reader, gcs)
        adapter = self.autoscaler._cloud_instance_provider
        adapter._main_executor = adapter._node_launcher_executors = AtOnce()

    def ray_state(self):
        self.version += 1
        trial = ResourceRequestUtil.make({"CPU": 2.0, "GPU": 0.25})
        head = NodeState(
            node_id=b"head",
            instance_id=self.head,
            ray_node_type_name="head",
            status=NodeStatus.IDLE,
            total_resources={"node:__internal_head__": 1.0},
            node_state_version=self.version,
        )
        return ClusterResourceState(
            cluster_resource_state_version=self.version,
            node_states=[head],
            pending_gang_resource_requests=[
                GangResourceRequest(requests=[trial]) for _ in range(self.trials)
            ],
        )

    def ask(self, times=1):
        """What EC2 is asked for in rounds of the autoscaler, five seconds apart, in order."""
        self.asked.clear()
        for _ in range(times):
            self.now += 5
            self.state = self.autoscaler.update_autoscaling_state()
        return [asked for asked, _ in itertools.groupby(asked[:2] for asked in self.asked)]

    def failures(self):
        """Node type and reason of failed launches, as Ray's status has them."""
        reply = GetClusterStatusReply(
            autoscaling_state=self.state, cluster_resource_state=ClusterResourceState()
        )
        status = ClusterStatusParser.from_get_cluster_status_reply(reply, Stats())
        return {failed.ray_node_type_name: failed.details for failed in status.failed_launches}

    def workers(self):
        nodes = self.provider.non_terminated_nodes({})
        kinds = Counter(self.provider.node_tags(node)[TAG_RAY_USER_NODE_TYPE] for node in nodes)
        return {kind: count for kind, count in kinds.items() if kind != "head"}


@pytest.fixture
def scarce(cloud, monkeypatch):
    cluster = Cluster(cloud.config, monkeypatch)
    assert cluster.ask(times=2) == []  # the autoscaler meets the head
    cluster.trials = 8
    yield cluster
    cluster.provider.terminate_nodes(cluster.provider.non_terminated_nodes({}))


def test_a_refused_type_leads_to_the_next_and_at_last_on_demand(scarce):
    scarce.refused = dict.fromkeys(SPOT_MACHINES, "InsufficientInstanceCapacity")
    assert scarce.ask(times=8) == [*SPOT_MACHINES, (L4, "on demand")]
    assert scarce.workers() == {"l4_on_demand": 2}


def test_every_zone_is_tried_before_the_next_type(scarce):
    scarce.refused = {(L4, "spot"): "UnfulfillableCapacity"}
    scarce.ask(times=3)
    zones = {subnet for machine, _, subnet in scarce.asked if machine == L4}
    assert zones == set(scarce.config["available_node_types"]["l4_spot"]["node_config"]["SubnetIds"])
    assert len(zones) == 5
    assert scarce.workers() == {"a10g_spot": 2}


def test_the_first_type_is_tried_again_after_ten_minutes(scarce):
    scarce.refused = {(L4, "spot"): "InsufficientInstanceCapacity"}
    assert scarce.ask(times=4) == [(L4, "spot"), (A10G, "spot")]
    scarce.refused, scarce.trials = {}, 12
    assert scarce.ask(times=2) == [(A10G, "spot")]
    scarce.now, scarce.trials = scarce.now + RAY_AUTOSCALER_AVAILABILITY_RECOVERY_S, 16
    assert scarce.ask(times=2) == [(L4, "spot")]
    assert scarce.workers() == {"a10g_spot": 3, "l4_spot": 1}


def test_where_fewer_come_than_were_asked_for_the_next_type_makes_up(scarce):
    scarce.granted = 1
    assert scarce.ask(times=4) == [(L4, "spot"), (A10G, "spot")]
    assert scarce.workers() == {"l4_spot": 1, "a10g_spot": 1}


def test_ray_says_what_was_refused_and_what_to_do(scarce):
    scarce.refused = {
        (L4, "spot"): "MaxSpotInstanceCountExceeded",
        (A10G, "spot"): "InsufficientInstanceCapacity",
        (L40S, "spot"): "SpotMaxPriceTooLow",
        (L4, "on demand"): "VcpuLimitExceeded",
    }
    scarce.ask(times=5)
    reasons = scarce.failures()
    zones = scarce.config["provider"]["availability_zone"]
    assert reasons["l4_spot"] == (
        f"AWS refused 2 g6.2xlarge (spot) in {zones}: MaxSpotInstanceCountExceeded: Not now. help: "
        'ask for more of "All G and VT Spot Instance Requests" under Service Quotas, Amazon EC2, us-east-1'
    )
    assert '"Running On-Demand G and VT instances"' in reasons["l4_on_demand"]
    assert "InsufficientInstanceCapacity: Not now. help: wait" in reasons["a10g_spot"]
    assert reasons.keys() == {"l4_spot", "a10g_spot", "l40s_spot", "l4_on_demand"}


def test_other_errors_are_said_and_cost_no_dearer_type(scarce):
    scarce.refused = {(L4, "spot"): "InvalidAMIID.NotFound"}
    assert scarce.ask(times=3) == [(L4, "spot")]
    assert "InvalidAMIID.NotFound" in scarce.failures()["l4_spot"]
    assert scarce.workers() == {}
