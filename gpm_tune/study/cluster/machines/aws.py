"""AWS for Ray's autoscaler: `provider.module` of `cluster.yaml`."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

from gpm_tune.study.cluster.machines.refusals import Refusal, teach_ray
from gpm_tune.study.cluster.machines.watch import boot_script

QUOTA = {"VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "InstanceLimitExceeded"}
CAPACITY = {
    "InsufficientCapacity",
    "InsufficientFreeAddressesInSubnet",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    "Unsupported",  # in this zone
}


class Provider(AWSNodeProvider):  # type: ignore[misc]
    """Ray's provider, whose machines end themselves, and whose refusals lead to the next type of node."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        teach_ray()

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch machines in the first zone that has them.

        Raises `Refusal` where no zone has them, or fewer than `count`.
        """
        if script := boot_script(tags[TAG_RAY_NODE_KIND], self.provider_config):
            node_config = {"UserData": script, **node_config}
        try:
            created: dict[str, Any] = super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            raise self._explained(error, node_config, count) from error
        if len(created) < count:
            few = f"AWS launched only {len(created)} of {count} {_named(node_config)}"
            raise Refusal("InsufficientInstanceCapacity", f"{few}; the next type makes up for the others")
        return created

    def _explained(
        self, error: NodeLaunchException, node_config: dict[str, Any], count: int
    ) -> NodeLaunchException:
        code, zones = error.category, self.provider_config["availability_zone"]
        if code in CAPACITY:
            advice = "wait: the next type is tried now, this one again within minutes; or add zones or types"
        elif code in QUOTA:
            region = self.provider_config["region"]
            advice = f'ask for more of "{_quota(node_config)}" under Service Quotas, Amazon EC2, {region}'
        else:
            return error
        refused = f"AWS refused {count} {_named(node_config)} in {zones}"
        return Refusal(code, f"{refused}: {code}: {error.description.rstrip('.')}. help: {advice}")


def _is_spot(node_config: dict[str, Any]) -> bool:
    return bool(node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot")


def _named(node_config: dict[str, Any]) -> str:
    return f"{node_config['InstanceType']} ({'spot' if _is_spot(node_config) else 'on demand'})"


def _quota(node_config: dict[str, Any]) -> str:
    """The name of the quota by which AWS counts this machine's vCPUs."""
    families = {"g": "G and VT", "p": "P"}
    family = families.get(node_config["InstanceType"][0], "Standard (A, C, D, H, I, M, R, T, Z)")
    spot = _is_spot(node_config)
    return f"All {family} Spot Instance Requests" if spot else f"Running On-Demand {family} instances"
