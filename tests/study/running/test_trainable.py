"""The trial on a worker: what its failures are called."""

import pytest
import torch
from examples import experiment_of

from gpm_tune.errors import DivergedError
from gpm_tune.study.running.trainable import reason_of


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has more.\nSee the docs"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_said_with_what_to_lower(error: Exception) -> None:
    reason = reason_of(error, experiment_of(training__batch_size=64))
    assert reason.startswith("out of memory")
    assert str(error).partition("\n")[0] in reason
    assert "training.batch_size (64)" in reason
    assert "evaluation.batch_size (500)" in reason
    assert "resources.gpu" in reason
    assert "\n" not in reason


def test_other_errors_say_what_and_where() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2) @ torch.zeros(3)
    assert "(test_trainable.py:" in reason_of(raised.value, experiment_of())
    assert reason_of(DivergedError("loss/real was not finite"), experiment_of()) == "loss/real was not finite"
