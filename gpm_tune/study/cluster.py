"""The Ray cluster that a study runs on: this machine, or many."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from gpm_tune.errors import UserError
from gpm_tune.study.specification import Resources

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
ACCELERATOR = "accelerator_type:"  # begins Ray's resource for a kind of GPU


@contextmanager
def connected(address: str) -> Iterator[dict[str, float]]:
    """Ray, started here for `local` or joined; gives the cluster's resources by Ray's names.

    Raises UserError where no cluster answers.
    """
    os.environ.update(RAY_SETTINGS)
    import ray

    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers ({error}). Start one with "
            "`ray start --head`, or use --address local"
        ) from None
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


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
