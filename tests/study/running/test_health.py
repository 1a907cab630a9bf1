"""What is the machine's fault, and what the trial's own."""

from __future__ import annotations

import errno

import pytest
import torch

from gpm_tune.study.running.health import is_of_machine, why_sick


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("Found no NVIDIA driver on your system."),
        RuntimeError("No CUDA GPUs are available"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_failures_of_a_machine(error: Exception) -> None:
    assert is_of_machine(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: invalid configuration argument"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA error"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
    ],
)
def test_failures_of_a_trial(error: Exception) -> None:
    assert not is_of_machine(error)


def test_a_healthy_machine() -> None:
    assert why_sick("cpu") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert str(why_sick("cuda")).startswith("torch cannot train on its cuda: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_that_is() -> None:
    assert why_sick("cuda") is None
