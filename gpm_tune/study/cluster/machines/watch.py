"""What a machine runs when it starts, so that it ends itself when its cluster is gone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER


def boot_script(kind: str, provider: Mapping[str, Any]) -> str | None:
    """The script by which a worker without Ray, or a head without a study, ends itself as `provider` says."""
    if kind == NODE_KIND_WORKER and (minutes := provider.get("minutes_without_ray")):
        return _watch(minutes, "-x", "raylet")
    if kind == NODE_KIND_HEAD and (hours := provider.get("hours_without_study")):
        # The brackets keep the watch from finding itself.
        return _watch(round(60 * hours), "-f", "[g]pm-tune (run|resume)")
    return None


def _watch(minutes: int, *process: str) -> str:
    script = files(__package__).joinpath("watch.sh").read_text()
    command = ["systemd-run", "--unit=gpm-tune-watch", "sh", "-c", script, "watch", str(minutes), *process]
    return f"#!/bin/sh\n{shlex.join(command)}\n"
