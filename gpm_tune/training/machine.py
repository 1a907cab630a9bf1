"""The machine that a training run is on: its devices, and what the run takes of memory, cores and energy."""

from __future__ import annotations

import ctypes
import resource
import sys
import time

import torch

from gpm_tune.cores import usable_cores
from gpm_tune.errors import UserError

JOULES_PER_MILLIJOULE = 1e-3
CUDA_CONTEXT = 500 * 2**20  # bytes of a GPU that CUDA takes for each process, besides tensors
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class Machine:
    """Looks at this process, and at the GPU it uses, from one evaluation to the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clocks = time.perf_counter(), time.process_time()
        self._energy = energy(device)
        self.joules = 0.0  # what the GPU took since the run began, of all that ran on it

    def measure(self) -> dict[str, float]:
        """Since the last call: cores that were busy; so far: peaks of memory in bytes, energy in joules.

        What belongs to a GPU is there where there is one, and energy where the GPU tells it.
        """
        before, self._clocks = self._clocks, (time.perf_counter(), time.process_time())
        wall, busy = (now - then for now, then in zip(self._clocks, before, strict=True))
        measured = {"system/cores": busy / wall, "system/memory": peak_memory()}
        if self._device.type == "cuda":
            measured["system/gpu_memory"] = float(torch.cuda.max_memory_allocated(self._device))
        spent, self._energy = self._energy, energy(self._device)
        if spent is not None and self._energy is not None:
            self.joules += self._energy - spent
            measured["system/energy"] = self.joules
        return measured


def energy(device: torch.device) -> float | None:
    """A GPU's counter of joules; None for a CPU, and where the GPU or its driver has none."""
    if device.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        identifier = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(identifier)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * JOULES_PER_MILLIJOULE
    except pynvml.NVMLError:  # older than Volta, a MIG slice, or no rights
        return None


def keep_freed_memory() -> None:
    """Let this process reuse the memory of large tensors instead of returning it to Linux each time.

    A CPU's activations are too large for malloc's defaults: fresh pages for each of them take up to a
    third of a training step. What the main thread frees is held until `return_freed_memory`. Nothing happens
    without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give back to Linux what is no longer used."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def limit_threads() -> None:
    """Let torch use no more threads than this process may keep busy: it sees no control group's limit."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def limit_gpu_memory(share: float) -> None:
    """Let this process's tensors take its share of the GPU's memory, less what CUDA takes, and no more.

    What exceeds it is torch.OutOfMemoryError here, and not in a process that shares the GPU.
    """
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(memory_fraction(share, total))


def memory_fraction(share: float, total: int) -> float:
    """The part of a GPU's memory, in bytes, that tensors may take for a share of the GPU."""
    return 1.0 if share >= 1 else max(share - CUDA_CONTEXT / total, share / 2)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16, and need not emulate them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def peak_memory() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def choose_device(wanted: str | None) -> str:
    """The device asked for, or the best there is. Raises UserError where it is not here."""
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    device = wanted or available[0]
    if device.split(":")[0] not in available:
        raise UserError(f"--device {device}: not on this machine; valid: {', '.join(available)}")
    return device
