"""Whether a machine can train at all: a failure that is the machine's is no result of a trial."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from gpm_tune.errors import FULL, first_line
from gpm_tune.study.storage.home import existing

LEAST_FREE = 1e9  # bytes of a disk
OF_MACHINE = FULL | {errno.EROFS, errno.EIO}
GPU_FAILS = re.compile(
    r"CUDA (driver )?error|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|CUFFT_|no kernel image|NVIDIA driver|"
    r"No CUDA GPUs|no CUDA-capable|Torch not compiled with CUDA",
    re.IGNORECASE,
)
OF_TRIAL = re.compile(  # CUDA's, and yet the trial's own
    r"out of memory|device-side assert|invalid (configuration )?argument|"
    r"NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE",
    re.IGNORECASE,
)


def why_sick(device: str, folders: Sequence[str] = ()) -> str | None:
    """Why no trial can train on this machine; None where it can. One small network is trained for a step.

    folders: whose disks must have some room.
    """
    for folder in folders:
        free = shutil.disk_usage(existing(Path(folder))).free
        if free < LEAST_FREE:
            return f"{folder} has {free / 1e9:.1f} GB free"
    try:
        network = torch.nn.Conv2d(1, 2, 3).to(device)
        network(torch.zeros(2, 1, 8, 8, device=device)).sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
    except (RuntimeError, AssertionError) as error:
        return f"torch cannot train on its {device}: {first_line(error)}"
    return None


def is_of_machine(error: BaseException) -> bool:
    """Whether a trial failed because of the machine that it ran on, and would elsewhere go on."""
    if isinstance(error, OSError):
        return error.errno in OF_MACHINE
    text = str(error)
    is_gpu = isinstance(error, RuntimeError) and GPU_FAILS.search(text)
    return bool(is_gpu) and not OF_TRIAL.search(text)
