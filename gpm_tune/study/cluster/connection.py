"""The Ray cluster that a study runs on: this machine, or many."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from gpm_tune.cores import usable_cores
from gpm_tune.data.dataset import default_root
from gpm_tune.errors import UserError, first_line
from gpm_tune.interrupts import sheltering
from gpm_tune.study.cluster.capacity import Capacity, Growth, growth_of_cluster, present_nodes
from gpm_tune.study.cluster.private_ray import narrow_token, private_session

# Read when ray is imported. What Tune would print, log or send besides is ours to do, or nobody's.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune's own snapshots are never read: the trial manager knows more, and survives more.
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
LAUNCH_LOOK_EVERY = 1.0  # and at the nodes that are started
HEAD_LOST = 3  # exit code


@contextmanager
def connected(address: str) -> Iterator[Callable[[], Capacity]]:
    """Ray, started here for `local` or joined; gives what tells the capacity that the cluster has now.

    What is started here listens on 127.0.0.1 only, and to nobody but this user. Raises UserError where no
    cluster answers, or it runs another Ray or Python, or where this process uses Ray already.
    """
    is_verbose = logging.getLogger("ray").isEnabledFor(logging.INFO)  # before Ray sets its own level
    refuse_beside_other_use()
    narrow_token()
    os.environ.update(RAY_SETTINGS | (ALONE if address == "local" else {}))
    if "GPM_TUNE_DATA" in os.environ:  # trials have other working folders
        os.environ["GPM_TUNE_DATA"] = str(default_root().absolute())
    session = private_session() if address == "local" else nullcontext()
    with session as folder, _joined(address, folder, is_verbose) as capacity:
        yield capacity


@contextmanager
def _joined(address: str, folder: str | None, is_verbose: bool) -> Iterator[Callable[[], Capacity]]:
    """folder: where a Ray that is started here puts its sockets and logs."""
    import ray

    # It calls trials that were started again errors of the study.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)

    try:
        _call(address)
        ray._private.utils.set_sigterm_handler = bool  # or its start would end at SIGTERM by SystemExit
        with sheltering():
            ray.init(
                address=address,
                num_cpus=usable_cores() if address == "local" else None,
                log_to_driver=is_verbose,
                logging_level=logging.INFO if is_verbose else logging.ERROR,
                include_dashboard=False if address == "local" else None,
                _temp_dir=folder,
            )
    except OSError as error:
        if address == "local":
            raise UserError(
                f"Ray does not start on this machine: {error}\n"
                "help: `gpm-tune doctor` looks for a place for its sockets; --verbose shows its log"
            ) from None
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
        import ray.autoscaler.v2.sdk  # before the thread does it: two at once may see it half made

        head = ray.get_runtime_context().gcs_address
        for watch in (_watch_head, _watch_launches):
            threading.Thread(target=watch, args=(head, leaving), daemon=True).start()
    try:
        growth = Growth() if address == "local" else growth_of_cluster()
        yield lambda: Capacity(present_nodes(), growth)
    finally:
        leaving.set()
        _shut_down()


def refuse_beside_other_use() -> None:
    """Raise UserError where this process uses Ray already: a study would end what it has there."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise UserError(
            "this process uses Ray already, and a study starts or joins one of its own\n"
            "help: call ray.shutdown() first"
        )


def _shut_down() -> None:
    """Leave Ray, and end what was started here: by SIGKILL, since it is deaf to Ray's SIGTERM."""
    import ray
    from ray._private.worker import _global_node as node

    if node is not None:
        kill_all = node.kill_all_processes
        node.kill_all_processes = lambda **how: kill_all(**{**how, "allow_graceful": False})
    ray.shutdown()


def _call(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would knock for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _watch_head(address: str, leaving: threading.Event) -> None:
    """End the process with a message once the head of the cluster is gone for good.

    No exception could do it: Ray's calls wait for the head, until Ray ends the process. Optuna's
    database and the training runs are on disk.
    """
    silence = 0.0  # as far as this process was not frozen
    while not leaving.wait(LOOK_EVERY):
        called = time.monotonic()
        try:
            _call(address)
            silence = 0.0
        except OSError as error:
            silence += LOOK_EVERY + min(time.monotonic() - called, CONNECT_SECONDS)
            if silence >= HEAD_SILENCE:
                print(
                    f"error: the head of the Ray cluster, {address}, has not answered for "
                    f"{HEAD_SILENCE:g} s ({error}). Nothing that was measured is lost: start a cluster, and "
                    "the same command continues the study",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HEAD_LOST)


def _watch_launches(address: str, leaving: threading.Event) -> None:
    """Say which nodes the cluster starts, and why it cannot start one."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    said: set[str] = set()
    while not leaving.wait(LAUNCH_LOOK_EVERY):
        try:
            status = get_cluster_status(address)
        except Exception:  # the head is away, which is said elsewhere
            continue
        starting = Counter(launch.ray_node_type_name for launch in status.pending_launches)
        starting.update(node.ray_node_type_name for node in status.pending_nodes)
        news = [f"the cluster is starting {kind} ({count})" for kind, count in starting.items()]
        news += [
            f"the cluster cannot start {f.ray_node_type_name}: {f.details}" for f in status.failed_launches
        ]
        for sentence in news:
            if sentence not in said:
                print(sentence, file=sys.stderr, flush=True)
        said.update(news)
