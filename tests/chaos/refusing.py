"""A cloud that has no machines of one type, for Ray's autoscaler: `provider.module` of a cluster's file."""

from __future__ import annotations

import time
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from gpm_tune.study.cluster.machines.refusals import Refusal, teach_ray

BOOT_SECONDS = 4.0  # that a machine takes until it can be used


class Provider(FakeMultiNodeProvider):  # type: ignore[misc]
    """Starts processes in place of machines, but none of the type `scarce`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        teach_ray()

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        """Raises `Refusal` for the scarce type."""
        if tags[TAG_RAY_USER_NODE_TYPE] == "scarce":
            raise Refusal("InsufficientInstanceCapacity", "the cloud has none. help: wait")
        time.sleep(BOOT_SECONDS)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
