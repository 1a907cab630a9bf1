"""Training steps against straightforward ones, model by model, in turns.

Each of them has a process of its own, and answers when it is asked: what slows this machine for longer
than a step slows all. An iteration is a step of the flow's network with its share of the generator's. The
data are noise, the teacher is untrained: neither changes what a step costs.

    python -m benchmarks.train_step --repeats 5
    python -m benchmarks.train_step --cases discr_flow --device cuda
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.experiments import CASES, MODELS, shipped
from benchmarks.machine import finish
from benchmarks.straightforward import straightforward
from benchmarks.table import Row, Table
from gpm_tune.training import Experiment
from gpm_tune.training.description import build_empty, describe
from gpm_tune.training.machine import peak_memory
from gpm_tune.training.profiling import Profiler

SECONDS = 1.0  # of a turn, at least: many iterations of a small network
GOALS = {"discr_flow": 0.45} | dict.fromkeys(MODELS[1:], 0.8)  # of the straightforward step's time
GOAL_OF_SMALL_NETWORKS = 0.6
Step = Callable[[], Any]


def turn_of(experiment: Experiment) -> int:
    """Iterations that a generator's step belongs to."""
    return build_empty(experiment)[0].flow_steps


def ours(precision: str) -> Callable[[Experiment, str], Step]:
    """Makes the next step of this package's training loop, with that `training.precision`."""

    def step(experiment: Experiment, device: str) -> Step:
        training = experiment.training.model_copy(update={"precision": precision})
        return Profiler(experiment.model_copy(update={"training": training}), device=device).train_step

    return step


STEPS: dict[str, Callable[[Experiment, str], Step]] = {
    "straightforward": straightforward,
    "float32": ours("float32"),
    "bfloat16": ours("bfloat16"),
}


class Worker:
    """One kind of step of an experiment, in a process of its own."""

    def __init__(self, kind: str, case: str, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_work, args=(kind, case, device, there), daemon=True)
        self._process.start()
        there.close()  # so that a process that dies is noticed, not waited for
        self._here.recv()

    def turn(self) -> tuple[float, int]:
        """Seconds per iteration, and the peak of memory in bytes so far."""
        self._here.send("go on")
        seconds, memory = self._here.recv()
        return seconds, memory

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def _work(kind: str, case: str, device: str, driver: Connection) -> None:
    experiment = shipped(case)
    step = STEPS[kind](experiment, device)
    turn = turn_of(experiment)
    for _ in range(turn):
        step()
    driver.send("ready")
    while True:
        driver.recv()
        driver.send((_seconds(step, turn, device), _memory(device)))


def _seconds(step: Step, turn: int, device: str) -> float:
    """Per iteration, over whole turns."""
    finish(device)
    started, iterations = time.perf_counter(), 0
    while True:
        for _ in range(turn):
            step()
        iterations += turn
        finish(device)
        if (elapsed := time.perf_counter() - started) >= SECONDS:
            return elapsed / iterations


def _memory(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else int(peak_memory())


def measure(case: str, device: str, repeats: int, peak: float) -> Iterator[Row]:
    """A row per precision: both times of an iteration, the median of their ratio, FLOPs and memory."""
    flops = describe(shipped(case)).flops_per_step
    for precision in ("float32", "bfloat16"):
        workers = [Worker(kind, case, device) for kind in ("straightforward", precision)]
        turns = [[worker.turn() for worker in workers] for _ in range(repeats)]
        for worker in workers:
            worker.stop()
        plain, seconds = (statistics.median(turn[i][0] for turn in turns) for i in (0, 1))
        memory = [size / 1e9 for _, size in turns[-1]]
        yield Row(
            what=f"{case}, step, {precision}",
            baseline=plain,
            ours=seconds,
            ratio=statistics.median(own / base for (base, _), (own, _) in turns),
            goal=f"≤ {GOALS.get(case, GOAL_OF_SMALL_NETWORKS)}",
            notes=f"{flops / 1e9:.3g} GFLOP, {flops / seconds / peak:.0%} of the float32 peak; "
            f"{memory[1]:.2f} GB ({memory[0]:.2f})",
        )


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    table = Table("train_step", arguments.device)
    for case in arguments.cases:
        for row in measure(case, arguments.device, arguments.repeats, table.peak):
            table.add(row)


if __name__ == "__main__":
    main()
