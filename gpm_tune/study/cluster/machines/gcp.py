"""Google Cloud for Ray's autoscaler: `provider.module` of `deploy/gcp.yaml`."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

from gpm_tune.study.cluster.machines.refusals import Refusal, teach_ray
from gpm_tune.study.cluster.machines.watch import boot_script


class Provider(GCPNodeProvider):  # type: ignore[misc]
    """Ray's provider, whose machines end themselves, and whose refusals lead to the next type of node."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        teach_ray()

    def create_node(self, base_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch machines in the zone of the file.

        Raises `Refusal` where it lacks one of them, or the project's quota does.
        """
        if script := boot_script(tags[TAG_RAY_NODE_KIND], self.provider_config):
            given = base_config.get("metadata", {}).get("items", [])
            items = [*given, {"key": "startup-script", "value": script}]
            base_config = {**base_config, "metadata": {"items": items}}
        try:
            created: dict[str, Any] = super().create_node(base_config, tags, count)
        except Exception as error:
            # Ray raises a plain exception with the error of the operation that failed.
            answer = error.args[0] if error.args else None
            if not isinstance(answer, dict) or "errors" not in answer:
                raise
            raise self._refusal(answer["errors"][0], base_config["machineType"], count) from error
        return created

    def _refusal(self, answer: dict[str, str], machine: str, count: int) -> Exception:
        code, zone = answer["code"], self.provider_config["availability_zone"]
        reason = answer.get("message", "no reason given").rstrip(".")
        refused = f"Google Cloud refused {count} {machine} in {zone}: {code}: {reason}."
        if code.startswith("ZONE_RESOURCE_POOL_EXHAUSTED"):
            advice = "wait: the next type is tried now, this one again within minutes; or take another zone"
        elif code == "QUOTA_EXCEEDED":
            advice = "ask for more of this quota under IAM & Admin, Quotas; new projects may have no GPUs"
        else:
            return RuntimeError(refused)
        return Refusal(code, f"{refused} help: {advice}")
