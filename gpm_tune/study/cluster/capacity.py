"""How many trials a cluster has room for: on the nodes that it has, and on those that it may start."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from gpm_tune.cores import usable_cores
from gpm_tune.errors import UserError, first_line
from gpm_tune.study.cluster.nodes import on_node
from gpm_tune.study.definition.specification import Resources, StudyConfig
from gpm_tune.training.objectives import TIMES

ACCELERATOR = "accelerator_type:"  # begins Ray's resource for a kind of GPU
PRICE = "gpm-tune/usd-per-hour"  # the label of a node type that has its price
TYPE = "ray.io/node-group"  # Ray's label for a node's type
HEAD = "node:__internal_head__"  # Ray's resource that the head alone has
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_log = logging.getLogger("gpm_tune")


@dataclass(frozen=True)
class Node:
    """A node that is there, or may be started: its resources by Ray's names."""

    resources: Mapping[str, float]
    type: str = ""
    id: str = ""  # Ray's, of a node that is there
    price: float | None = None  # US dollars an hour; None where the cluster's file does not say

    def places(self, wanted: Resources) -> int:
        """How many trials fit on it."""
        kind = wanted.accelerator_type
        if kind and not self.resources.get(ACCELERATOR + kind):
            return 0
        fitting = int(self.resources.get("CPU", 0) // wanted.cpu)
        if not wanted.gpu:
            return fitting
        return min(fitting, int(self.resources.get("GPU", 0)) * int(1 / wanted.gpu))


@dataclass(frozen=True)
class Growth:
    """What a cluster's autoscaler may start."""

    types: tuple[tuple[Node, int], ...] = ()  # the likeliest first, each with how many at most
    workers: int = 0  # at most, of all types together

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Growth:
        """As a cluster's file says, once Ray has filled it in."""
        kinds = {k: v for k, v in config["available_node_types"].items() if k != config["head_node_type"]}
        workers = int(config.get("max_workers", 0))
        return cls(
            tuple(
                (_node(kind["resources"], name, kind.get("labels", {})), kind.get("max_workers", workers))
                for name, kind in sorted(kinds.items(), key=lambda pair: -pair[1].get("priority", 0))
                if kind["resources"]  # Ray was not told what such a node has, and starts none
            ),
            workers,
        )


@dataclass(frozen=True)
class Capacity:
    """The nodes of a cluster, head included, and what it may grow to."""

    present: Sequence[Node]
    growth: Growth = Growth()

    def nodes_for(self, wanted: Resources) -> list[Node]:
        """Where trials fit: on nodes that are there, then on the likeliest that may be started besides."""
        there = Counter(node.type for node in self.present)
        more = [
            node
            for node, most in self.growth.types
            if node.places(wanted)
            for _ in range(most - there[node.type])
        ]
        free = max(0, self.growth.workers - (len(self.present) - 1))
        return [node for node in self.present if node.places(wanted)] + more[:free]

    def trials_at_a_time(self, wanted: Resources) -> int:
        """How many trials fit, and are allowed, at the same time."""
        fitting = sum(node.places(wanted) for node in self.nodes_for(wanted))
        return min(fitting, wanted.concurrent or fitting)

    def used_by(self, wanted: Resources, trials: int) -> list[Node]:
        """The nodes that so many trials need at the same time, and those that run none, as the head."""
        used = [node for node in self.present if not node.places(wanted)]
        for node in self.nodes_for(wanted):
            if trials <= 0:
                break
            used.append(node)
            trials -= node.places(wanted)
        return used

    @property
    def kinds(self) -> list[Node]:
        """The nodes that are there, and one of each type that may be started."""
        return [*self.present, *(node for node, _ in self.growth.types)]

    @property
    def is_empty(self) -> bool:
        """Whether no node is there for trials, and none is known that may be started."""
        return not self.growth.types and not any(node.resources.get("CPU") for node in self.present)

    def check(self, wanted: Resources, where: str) -> None:
        """Raise UserError where no trial could ever start."""
        nodes = self.kinds
        if any(node.places(wanted) for node in nodes):
            return
        cpus, gpus = (max(node.resources.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        on_one = " on one node" if len(nodes) > 1 else ""
        if wanted.gpu > gpus:
            raise UserError(
                f"resources.gpu: a trial asks for {wanted.gpu:g} GPU, {where} has {gpus:g}{on_one}. "
                "Set resources.gpu=0 to train on the CPU"
            )
        if wanted.cpu > cpus:
            asks = f"resources.cpu: a trial asks for {wanted.cpu} CPU cores"
            raise UserError(f"{asks}, {where} has {cpus:g}{on_one}")
        if wanted.accelerator_type not in (None, *self.accelerators):
            raise UserError(
                f"resources.accelerator_type: a trial asks for {wanted.accelerator_type}, {where} has "
                f"{', '.join(self.accelerators) or 'none'}"
            )
        raise UserError(
            f"resources: no node has the {wanted.cpu} CPU cores and {wanted.gpu:g} GPU of a trial together"
        )

    @property
    def accelerators(self) -> list[str]:
        """The kinds of GPUs that nodes have or may have, by Ray's names."""
        names = {name for node in self.kinds for name in node.resources if name.startswith(ACCELERATOR)}
        return sorted(name.removeprefix(ACCELERATOR) for name in names)

    def unlike_gpus(self, study: StudyConfig) -> str | None:
        """A warning where times are judged, and there are several kinds of GPUs; None where all is well."""
        times = [metric for metric in study.wanted if metric in TIMES]
        is_any = study.resources.gpu and not study.resources.accelerator_type
        if len(self.accelerators) < 2 or not times or not is_any:
            return None
        return (
            f"{' and '.join(dict.fromkeys(times))} of trials on {', '.join(self.accelerators)} cannot be "
            "compared\nhelp: choose one kind of GPU with resources.accelerator_type"
        )

    @property
    def price(self) -> float | None:
        """US dollars an hour of the nodes that are there; None where no price is known."""
        return price_of(self.present)


def price_of(nodes: Iterable[Node]) -> float | None:
    """US dollars an hour of nodes; None where no price is known."""
    known = [node.price for node in nodes if node.price is not None]
    return sum(known) if known else None


def this_machine() -> Capacity:
    """What Ray would find here, but for the kind of GPU."""
    return Capacity([Node({"CPU": float(usable_cores()), "GPU": float(torch.cuda.device_count())})])


def present_nodes() -> list[Node]:
    """The nodes of the cluster that is connected, but for those that get no more work."""
    import ray
    from ray._private.state import state

    leaving = state.get_draining_nodes()
    return [
        replace(_node(node["Resources"], node["Labels"].get(TYPE, ""), node["Labels"]), id=node["NodeID"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    ]


def growth_of_cluster() -> Growth:
    """What the autoscaler of the cluster that is connected may start, as its head knows.

    Nothing in Ray tells: what starts nodes reads a file, or asks Kubernetes, and keeps it to itself.
    """
    import ray

    head = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and HEAD in n["Resources"])
    ask = on_node(head, _autoscaler_config)
    try:
        config = ray.get(ask.remote(ray.get_runtime_context().gcs_address))
        return Growth.of(config) if config else Growth()
    except (ray.exceptions.RayError, KeyError, TypeError) as error:
        _log.warning("what nodes the cluster may start is unknown: %s", first_line(error))
        return Growth()


def _autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """On the head: the configuration of its autoscaler; None where it has none."""
    if "RAY_CLUSTER_NAME" in os.environ and POD_NAMESPACE.exists():  # in a pod of KubeRay's
        from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

        name, namespace = os.environ["RAY_CLUSTER_NAME"], POD_NAMESPACE.read_text().strip()
        return dict(AutoscalingConfigProducer(name, namespace)())
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        words: list[str] = []
        with suppress(OSError):  # it has ended, or is another user's
            words = process.read_text(errors="replace").split("\0")
        options = dict(word.partition("=")[::2] for word in words)
        file = options.get("--autoscaling-config")
        if file and options.get("--gcs-address") == gcs_address:  # it starts the cluster's nodes
            return dict(yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8")))
    return None


def _node(resources: Mapping[str, float], kind: str, labels: Mapping[str, str]) -> Node:
    try:
        price = float(labels[PRICE])
    except (KeyError, ValueError):
        price = None
    return Node(resources, kind, price=price)
