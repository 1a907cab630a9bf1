"""Machines that a cloud refuses, told to Ray so that it tries the next type of node and says why.

Ray 2.60 lowers the priority of a type whose machines do not come up in time, but not of one whose launch the
cloud refuses: it asks for the same type for ever. Its status has room for the reason, but loses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.core.generated.instance_manager_pb2 import Instance


class Refusal(NodeLaunchException):  # type: ignore[misc]
    """No machine of this type now, for want of capacity or quota: another type may be had."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence, None)

    def __str__(self) -> str:
        return str(self.description)


@cache
def teach_ray() -> None:
    """Let Ray's autoscaler in this process avoid refused types for a while, and keep why launches failed."""
    resolve, update = Reconciler._try_resolve_pending_allocation, InstanceManager._update_instance
    notify = CloudResourceMonitor.notify

    def resolve_with_reason(
        instance: Any, machines: Any, errors: Mapping[tuple[str, str], Exception], remaining: Any
    ) -> Any:
        event = resolve(instance, machines, errors, remaining)
        if event is not None and event.new_instance_status == Instance.ALLOCATION_FAILED:
            reason = errors[instance.launch_request_id, instance.instance_type].__cause__
            event.details = str(reason)
            if isinstance(reason, Refusal):
                event.instance_type = instance.instance_type
        return event

    def update_with_details(instance: Any, event: Any) -> Any:
        updated = update(instance, event)
        updated.status_history[-1].details = event.details
        return updated

    def notify_of_refusals(monitor: Any, events: Sequence[Any]) -> None:
        notify(monitor, events)
        for event in events:
            # A failed launch has its type from `resolve_with_reason` alone.
            if event.new_instance_status == Instance.ALLOCATION_FAILED and event.instance_type:
                monitor.allocation_timeout(event)

    Reconciler._try_resolve_pending_allocation = staticmethod(resolve_with_reason)
    InstanceManager._update_instance = staticmethod(update_with_details)
    CloudResourceMonitor.notify = notify_of_refusals
