"""How many trials a cluster has room for, now and once it has grown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from gpm_tune.errors import UserError
from gpm_tune.study.cluster.capacity import Capacity, Growth, Node, price_of
from gpm_tune.study.definition.specification import Resources

HEAD = Node({"node:__internal_head__": 1.0}, "head", price=0.25)
L4 = {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}
L40S = {"CPU": 8, "GPU": 1, "accelerator_type:L40S": 1}
SPOT, LARGE = Node(L4, "l4_spot", price=0.5), Node(L40S, "l40s_spot", price=1.0)
QUARTER = {"cpu": 2, "gpu": 0.25}
FILE: dict[str, Any] = {
    "head_node_type": "head",
    "max_workers": 8,
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}},
        "l40s_spot": {"resources": L40S, "max_workers": 4, "priority": 1},
        "l4_spot": {
            "resources": L4,
            "max_workers": 8,
            "priority": 3,
            "labels": {"gpm-tune/usd-per-hour": "0.50"},
        },
        "unknown": {"resources": {}, "max_workers": 8, "priority": 9},
    },
}


def wanted(**resources: Any) -> Resources:
    return Resources.model_validate(resources)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"cpu": 3}, 2),
        ({"gpu": 0.3}, 6),
        ({"gpu": 1}, 2),
        ({"gpu": 0.3, "concurrent": 4}, 4),
        ({"cpu": 9}, 0),
        ({"gpu": 1, "accelerator_type": "L4"}, 0),
    ],
)
def test_trials_on_one_node(resources: dict[str, Any], expected: int) -> None:
    """A GPU of 0.3 a trial holds three of them, not ten thirds."""
    assert Capacity([Node({"CPU": 8.0, "GPU": 2.0})]).trials_at_a_time(wanted(**resources)) == expected


def test_what_is_left_of_two_nodes_makes_no_place() -> None:
    assert Capacity([Node({"CPU": 3.0}), Node({"CPU": 3.0})]).trials_at_a_time(wanted(cpu=2)) == 2


def test_a_file_is_read_as_ray_reads_it() -> None:
    growth = Growth.of(FILE)
    assert growth.workers == 8
    assert [(node.type, node.price, most) for node, most in growth.types] == [
        ("l4_spot", 0.5, 8),
        ("l40s_spot", None, 4),
    ]


def test_the_shipped_cluster_has_room_for_no_more_than_its_workers() -> None:
    """Their types' maxima add up to 22 nodes, of which 8 are allowed."""
    config = yaml.safe_load((Path(__file__).parents[3] / "cluster.yaml").read_text())
    for name, kind in config["available_node_types"].items():
        kind["resources"] = {} if name == config["head_node_type"] else L4
    assert sum(most for _, most in Growth.of(config).types) > 8
    assert Capacity([HEAD], Growth.of(config)).trials_at_a_time(wanted(**QUARTER)) == 32


def test_a_cluster_of_kuberay_is_read_by_rays_own_code() -> None:
    manifests = (Path(__file__).parents[3] / "deploy" / "kubernetes" / "raycluster.yaml").read_text()
    (cluster,) = (doc for doc in yaml.safe_load_all(manifests) if doc["kind"] == "RayCluster")
    cluster["metadata"]["namespace"] = "default"
    growth = Growth.of(_derive_autoscaling_config_from_ray_cr(cluster))
    capacity = Capacity([HEAD], growth)
    groups = cluster["spec"]["workerGroupSpecs"]
    assert {node.type for node, _ in growth.types} == {group["groupName"] for group in groups}
    assert growth.workers == sum(group["maxReplicas"] for group in groups)
    assert capacity.trials_at_a_time(wanted(**QUARTER)) == 4 * growth.workers
    for group in groups:
        assert capacity.trials_at_a_time(wanted(gpu=1, accelerator_type=group["groupName"].upper()))


def test_an_empty_cluster_counts_what_it_may_start() -> None:
    growth = Growth(((SPOT, 2), (LARGE, 2)), workers=3)
    empty = Capacity([HEAD], growth)
    assert not empty.is_empty
    assert [node.type for node in empty.nodes_for(wanted(**QUARTER))] == ["l4_spot", "l4_spot", "l40s_spot"]
    assert empty.trials_at_a_time(wanted(**QUARTER)) == 12
    assert empty.trials_at_a_time(wanted(gpu=0.5, accelerator_type="L40S")) == 4
    begun = Capacity([HEAD, SPOT], growth)
    assert begun.trials_at_a_time(wanted(**QUARTER)) == 12, "a node that has come is counted once"
    assert Capacity([HEAD, SPOT, SPOT, LARGE], growth).trials_at_a_time(wanted(**QUARTER)) == 12


def test_a_cluster_that_tells_nothing_is_empty_until_a_node_joins() -> None:
    assert Capacity([HEAD]).is_empty
    assert not Capacity([HEAD, SPOT]).is_empty


@given(
    types=st.lists(st.tuples(st.integers(1, 16), st.integers(0, 4), st.integers(0, 9)), max_size=4),
    workers=st.integers(0, 12),
    cpu=st.integers(1, 8),
)
def test_nodes_are_never_more_than_allowed(types: list[tuple[int, int, int]], workers: int, cpu: int) -> None:
    nodes = [(Node({"CPU": cpus, "GPU": gpus}, str(i)), most) for i, (cpus, gpus, most) in enumerate(types)]
    found = Capacity([HEAD], Growth(tuple(nodes), workers)).nodes_for(wanted(cpu=cpu))
    assert len(found) <= workers
    for node, most in nodes:
        assert sum(other is node for other in found) <= most
    assert all(node.places(wanted(cpu=cpu)) for node in found)


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"cpu": 9}, "resources.cpu: a trial asks for 9 CPU cores, the cluster has 8 on one node"),
        ({"gpu": 1, "accelerator_type": "H100"}, "a trial asks for H100, the cluster has L4, L40S"),
        ({"cpu": 8, "gpu": 1, "accelerator_type": "T4"}, "a trial asks for T4"),
    ],
)
def test_what_fits_nowhere_is_refused(resources: dict[str, Any], sentence: str) -> None:
    capacity = Capacity([HEAD, SPOT], Growth(((LARGE, 1),), workers=2))
    with pytest.raises(UserError, match=sentence):
        capacity.check(wanted(**resources), "the cluster")


def test_cores_and_gpu_have_to_be_on_one_node() -> None:
    apart = Capacity([Node({"CPU": 8.0}), Node({"CPU": 1.0, "GPU": 1.0})])
    with pytest.raises(UserError, match="no node has the 4 CPU cores and 1 GPU of a trial together"):
        apart.check(wanted(cpu=4, gpu=1), "the cluster")
    with pytest.raises(UserError, match="a trial asks for 1 GPU, this machine has 0"):
        Capacity([Node({"CPU": 8.0})]).check(wanted(gpu=1), "this machine")


def test_money_is_that_of_the_head_and_of_the_nodes_that_are_needed() -> None:
    capacity = Capacity([HEAD], Growth(((SPOT, 8),), workers=8))
    assert price_of(capacity.used_by(wanted(**QUARTER), trials=5)) == 0.25 + 2 * 0.5
    assert capacity.price == 0.25
    assert Capacity([Node({"CPU": 8.0})]).price is None
