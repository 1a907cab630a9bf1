"""What a run takes of its machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from examples import experiment_of

from gpm_tune.training import Trainer, machine
from gpm_tune.training.machine import CUDA_CONTEXT, Machine, limit_gpu_memory, memory_fraction

CPU = torch.device("cpu")


def test_a_process_that_sleeps_keeps_no_core_busy() -> None:
    watched = Machine(CPU)
    time.sleep(0.5)
    asleep = watched.measure()["system/cores"]
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    awake = watched.measure()["system/cores"]
    assert 0 <= asleep < awake, "each measures the time since the one before"


def test_memory_is_in_bytes() -> None:
    before = Machine(CPU).measure()["system/memory"]
    size = int(before) + 100 * 2**20  # more than the process ever had
    block = torch.ones(size, dtype=torch.uint8)
    assert Machine(CPU).measure()["system/memory"] > size
    del block


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5])
@pytest.mark.parametrize("total", [24 * 2**30, 80 * 2**30])
def test_trials_that_share_a_gpu_fit_on_it_with_what_cuda_takes_for_each(share: float, total: int) -> None:
    trials = int(1 / share)
    assert 0 < trials * (memory_fraction(share, total) * total + CUDA_CONTEXT) <= total + trials


def test_a_gpu_of_its_own_is_a_trials_whole() -> None:
    assert memory_fraction(1.0, 2**30) == 1
    assert memory_fraction(0.25, 2**30) == 0.125, "of a GPU so small that CUDA alone exceeds the share"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_more_than_the_share_is_out_of_memory() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    limit_gpu_memory(0.01)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total // 50, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose counter stands at 1000 J and takes 7 J between any two looks."""

    def count() -> Iterator[float]:
        total = 1000.0
        while True:
            yield total
            total += 7.0

    readings = count()
    monkeypatch.setattr(machine, "energy", lambda _device: next(readings))


@pytest.mark.usefixtures("counter")
def test_energy_adds_up_and_survives_a_restart(tmp_path: Path) -> None:
    trainer = Trainer(experiment_of())
    spent = []
    for _ in range(2):
        evaluation = trainer.run_interval()
        assert evaluation is not None
        spent.append(evaluation.measured.scalars["system/energy"])
    assert spent == [7.0, 14.0]
    trainer.save(tmp_path)
    again = Trainer(experiment_of())
    again.restore(tmp_path)
    evaluation = again.run_interval()
    assert evaluation is not None
    assert evaluation.measured.scalars["system/energy"] == 21.0


def test_a_cpu_has_no_counter() -> None:
    assert machine.energy(CPU) is None
    assert "system/energy" not in Machine(CPU).measure()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpus_counter_grows() -> None:
    device = torch.device("cuda")
    before = machine.energy(device)
    if before is None:
        pytest.skip("this GPU does not tell its energy")
    torch.ones(2000, 2000, device=device).matrix_power(64).sum().item()
    time.sleep(0.5)
    after = machine.energy(device)
    assert after is not None
    assert after > before
