"""What measured times depend on, and where they are kept."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gpm_tune.cores import usable_cores

RESULTS = Path(__file__).parent / "results"


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, GPU if there is one, load, and versions."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": usable_cores(),
        **gpu,
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def product_peak(device: str, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the best of some large matrix products."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(clock(lambda: a @ b, device) for _ in range(10))


def clock(work: Callable[[], object], device: str) -> float:
    """Seconds of some work."""
    finish(device)
    started = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - started


def finish(device: str) -> None:
    """Wait for what was started."""
    if device == "cuda":
        torch.cuda.synchronize()
