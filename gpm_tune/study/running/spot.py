"""The notice that a cloud, or Ray, gives some seconds or minutes before a node is taken away."""

from __future__ import annotations

import encodings.idna  # noqa: F401 (of look-ups of names: before a thread imports it)
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

import ray

POLL_SECONDS = 5.0  # as AWS recommends
ANSWER_SECONDS = 2.0

Ask = Callable[[], str | None]
"""Asks a cloud for its notice; None while there is none. Raises OSError on any other machine than its own."""


class SpotWatch:
    """Looks, in a thread, for the notice that this node is about to be taken away."""

    def __init__(self) -> None:
        self.notice: str | None = None  # what is about to happen, in a sentence
        self.is_draining = False  # Ray knows it
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        cloud = next((ask for ask in (ask_aws, ask_google) if _answers(ask)), lambda: None)
        pause = threading.Event()
        while not self.notice:
            try:
                draining = ask_ray()
                self.is_draining = draining is not None
                self.notice = draining or cloud()
            except (OSError, ray.exceptions.RayError):  # it was too busy to answer
                continue
            finally:
                pause.wait(0 if self.notice else POLL_SECONDS)


def ask_ray() -> str | None:
    """Ask Ray: a node that gets SIGTERM (`ray start --block`) drains for half a minute."""
    from ray._private.state import state

    is_draining = ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
    return "it is about to be taken away, as Ray was told" if is_draining else None


def ask_aws() -> str | None:
    """Ask AWS: its instance metadata service, version 2."""
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    token = _fetch(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    try:
        found = _fetch(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # there is none
            return None
        raise
    action = json.loads(found)
    return f"AWS is about to {action['action']} its spot node, at {action['time']}"


def ask_google() -> str | None:
    """Ask Google Cloud: its metadata server."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/preempted"
    found = _fetch(url, {"Metadata-Flavor": "Google"})
    return "Google Cloud is about to take its spot node away" if found.strip() == "TRUE" else None


def _answers(ask: Ask) -> bool:
    try:
        ask()
    except (OSError, ValueError, KeyError):  # nobody's, or another cloud's, answer
        return False
    return True


def _fetch(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        text: str = answer.read().decode()
    return text
