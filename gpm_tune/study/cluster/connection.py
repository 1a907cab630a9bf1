"""The Ray cluster that a study runs on: this machine, or many."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from gpm_tune.errors import UserError, first_line
from gpm_tune.study.definition.specification import Resources

# Read when ray is imported. What Tune would print, log or send besides is ours to do, or nobody's.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune's own snapshots are never read: the ledger knows more, and survives more.
    "TUNE_GLOBAL_CHECKPOINT_S": "31536000",
    # Ray would run trials at a lower priority than everything else on the machine: 7 % slower on a busy one.
    "RAY_worker_niceness": "0",
    # Or Tune would keep every result of every trial in memory.
    "TUNE_ONLY_STORE_CHECKPOINT_SCORE_ATTRIBUTE": "1",
}
# On every system: processes of one machine find each other at 127.0.0.1, and listen nowhere else.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
CONNECT_SECONDS = 5.0  # for the head to take a call
HEAD_SILENCE = 45.0  # seconds; after 60 Ray ends the process from C++, and says nothing of use
LOOK_EVERY = 5.0  # seconds between looks at the head
HEAD_LOST = 3  # exit code
ACCELERATOR = "accelerator_type:"  # begins Ray's resource for a kind of GPU


@contextmanager
def connected(address: str) -> Iterator[dict[str, float]]:
    """Ray, started here for `local` or joined; gives the cluster's resources by Ray's names.

    They are those that it may grow to, where it starts nodes by itself. What is started here listens on
    127.0.0.1 only. Raises UserError where no cluster answers, or it runs another Ray or Python.
    """
    is_verbose = logging.getLogger("ray").isEnabledFor(logging.INFO)  # before Ray sets its own level
    os.environ.update(RAY_SETTINGS | (ALONE if address == "local" else {}))
    import ray

    # It calls trials that were started again errors of the study.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)

    try:
        _call(address)
        ray.init(
            address=address,
            log_to_driver=is_verbose,
            logging_level=logging.INFO if is_verbose else logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except OSError as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers ({error}). Start one with `ray start --head`, or "
            "use --address local; one that asks for a token answers with RAY_AUTH_MODE=token, and its token "
            "in ~/.ray/auth_token, only"
        ) from None
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"--address {address}: {first_line(error)} Set RAY_AUTH_MODE=token, with the cluster's token in "
            "~/.ray/auth_token"
        ) from None
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise UserError(
            f"--address {address}: {error}\nInstall the cluster's versions here, or these on the cluster"
        ) from None
    leaving = threading.Event()
    if address != "local":
        head = ray.get_runtime_context().gcs_address
        threading.Thread(target=_watch_head, args=(head, leaving), daemon=True).start()
    try:
        yield totals()
    finally:
        leaving.set()
        ray.shutdown()


def _call(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would knock for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def totals() -> dict[str, float]:
    """The resources of the cluster; where it starts nodes by itself, of the largest that it may become."""
    import ray
    from ray._private.state import state  # no public interface tells what the autoscaler may start

    now: dict[str, float] = ray.cluster_resources()
    largest = state.get_max_resources_from_cluster_config() or {}
    return {name: max(now.get(name, 0), largest.get(name, 0)) for name in {*now, *largest}}


def _watch_head(address: str, leaving: threading.Event) -> None:
    """End the process with a message once the head of the cluster is gone for good.

    No exception could do it: Ray's calls wait for the head, until Ray ends the process. The ledger and
    the spools are on disk.
    """
    answered = time.monotonic()
    while not leaving.wait(LOOK_EVERY):
        try:
            _call(address)
            answered = time.monotonic()
        except OSError as error:
            if time.monotonic() - answered >= HEAD_SILENCE:
                print(
                    f"error: the head of the Ray cluster, {address}, has not answered for "
                    f"{HEAD_SILENCE:g} s ({error}). Nothing that was measured is lost: start a cluster, and "
                    "the same command continues the study",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HEAD_LOST)


def this_machine() -> dict[str, float]:
    """What Ray would find here, but for the kind of GPU."""
    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def check_resources(wanted: Resources, totals: Mapping[str, float], where: str) -> None:
    """Raise UserError where no trial could ever start."""
    cpus, gpus = totals.get("CPU", 0), totals.get("GPU", 0)
    if wanted.gpu > gpus:
        raise UserError(
            f"resources.gpu: a trial asks for {wanted.gpu:g} GPU, {where} has {gpus:g}. "
            "Set resources.gpu=0 to train on the CPU"
        )
    if wanted.cpu > cpus:
        raise UserError(f"resources.cpu: a trial asks for {wanted.cpu} CPU cores, {where} has {cpus:g}")
    kinds = sorted(name.removeprefix(ACCELERATOR) for name in totals if name.startswith(ACCELERATOR))
    if kinds and wanted.accelerator_type and wanted.accelerator_type not in kinds:
        raise UserError(
            f"resources.accelerator_type: a trial asks for {wanted.accelerator_type}, {where} has "
            f"{', '.join(kinds)}"
        )


def trials_at_a_time(wanted: Resources, totals: Mapping[str, float]) -> int:
    """How many trials fit, and are allowed, at the same time."""
    fitting = int(totals.get("CPU", 0) // wanted.cpu)
    if wanted.gpu:
        gpus = totals.get("GPU", 0)
        fitting = min(fitting, int(gpus // wanted.gpu if wanted.gpu >= 1 else gpus * int(1 / wanted.gpu)))
    return min(fitting, wanted.concurrent or fitting)
