"""Training steps against straightforward ones, model by model, in turns.

Each of the two has a process of its own, and answers when it is asked: what slows this machine for longer
than a step slows both. An iteration is a step of the flow's network with its share of the generator's. The
data are noise, the teacher is untrained: neither changes what a step costs.

    python -m benchmarks.train_step --repeats 5
    python -m benchmarks.train_step --cases discr_flow --device cuda
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.straightforward import straightforward
from gpm_tune.documents import Document
from gpm_tune.study.specification import find_file, load_experiment
from gpm_tune.training import Experiment
from gpm_tune.training.description import describe
from gpm_tune.training.machine import peak_memory
from gpm_tune.training.rehearsal import Rehearsal

MODELS = ("discr_flow", "edm", "score_gan", "gan")
CASES = (*MODELS, *(f"{name}_gaussians" for name in MODELS))
SECONDS = 1.0  # of a turn, at least: many iterations of a small network
Step = Callable[[], Any]


def shipped(case: str) -> Experiment:
    """The base experiment of a file in search_spaces; with the features that need no download."""
    experiment = load_experiment(Document.load(find_file(Path(f"{case}.yaml"))))
    features = "small" if experiment.features else None
    evaluation = experiment.evaluation.model_copy(update={"features": features})
    return experiment.model_copy(update={"evaluation": evaluation})


def turn_of(experiment: Experiment) -> int:
    """Iterations that a generator's step belongs to."""
    model: Any = experiment.model
    return getattr(model, "score_steps", None) or getattr(model, "discriminator_steps", None) or 1


def ours(experiment: Experiment, device: str) -> Step:
    """The next step of this package's training loop."""
    return Rehearsal(experiment, device=device).train_step


def ours_in_bfloat16(experiment: Experiment, device: str) -> Step:
    """Likewise, with `training.precision: bfloat16`."""
    training = experiment.training.model_copy(update={"precision": "bfloat16"})
    return ours(experiment.model_copy(update={"training": training}), device)


STEPS: dict[str, Callable[[Experiment, str], Step]] = {
    "straightforward": straightforward,
    "float32": ours,
    "bfloat16": ours_in_bfloat16,
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
    started, iterations = time.perf_counter(), 0
    while True:
        for _ in range(turn):
            step()
        iterations += turn
        if device == "cuda":
            torch.cuda.synchronize()
        if (elapsed := time.perf_counter() - started) >= SECONDS:
            return elapsed / iterations


def _memory(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else int(peak_memory())


def measure(case: str, device: str, repeats: int, peak: float) -> dict[str, Any]:
    """A row: seconds per iteration of both, the median of their ratio, FLOPs and memory."""
    workers = [Worker(kind, case, device) for kind in STEPS]
    turns = [[worker.turn() for worker in workers] for _ in range(repeats)]
    for worker in workers:
        worker.stop()
    flops = describe(shipped(case)).flops_per_step
    row: dict[str, Any] = {"case": case, "GFLOP": flops / 1e9}
    for i, kind in enumerate(STEPS):
        seconds = statistics.median(turn[i][0] for turn in turns)
        row[f"{kind}, s"] = seconds
        if i > 0:
            row[f"{kind}, ratio"] = statistics.median(turn[i][0] / turn[0][0] for turn in turns)
            row[f"{kind}, share of peak"] = flops / seconds / peak
        row[f"{kind}, GB"] = turns[-1][i][1] / 1e9
    return row


def product_peak(device: str, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the best of some large matrix products."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    peak = product_peak(arguments.device)
    print(peak / 1e9, os.getloadavg())
    for case in arguments.cases:
        print(measure(case, arguments.device, arguments.repeats, peak), flush=True)


if __name__ == "__main__":
    main()
