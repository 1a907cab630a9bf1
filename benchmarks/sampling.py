"""Sampling against the evaluations of the network alone that it takes.

    python -m benchmarks.sampling --samples 64 --repeats 3

The networks are untrained. Alone, each is called as often as sampling calls it, on one batch of noise;
for a Discriminator Flow a call includes the gradient with respect to the samples.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments import MODELS, shipped
from benchmarks.machine import clock
from benchmarks.table import Row, Table
from gpm_tune.models import to_device
from gpm_tune.training.machine import keep_freed_memory
from gpm_tune.training.trainer import draw

CASES = [name for name in MODELS if name != "score_gan"]  # which samples as a GAN does
FULL = 10_000


def alone(case: str, n: int, device: str) -> Callable[[], object]:
    """As many calls of the network as n samples, drawn together, take."""
    experiment = shipped(case)
    model: Any = to_device(experiment.model.build(experiment.data.shape), device).eval()
    x, t = torch.randn(n, *model.noise_shape, device=device), torch.full((n,), 0.5, device=device)
    return lambda: ALONE[case](model, x, t)


@torch.no_grad()
def generate(model: Any, z: Tensor, _t: Tensor) -> None:
    """A GAN's samples."""
    model.generator(z)


@torch.no_grad()
def denoise(model: Any, x: Tensor, t: Tensor) -> None:
    """What Heun's method calls of an EDM."""
    network = model.flow.network
    for _ in range(2 * model.steps - 1):
        network.network(x, network.embedding(t))


def descend(model: Any, x: Tensor, t: Tensor) -> None:
    """The gradients that a Discriminator Flow's particles follow."""
    network = model.flow.network.requires_grad_(False)
    for _ in range(model.steps):
        y = x.detach().requires_grad_()
        torch.autograd.grad(network(y, model.flow.embedding(t)).sum(), y)


ALONE = {"discr_flow": descend, "edm": denoise, "gan": generate}


def sampling(case: str, n: int, device: str) -> Callable[[], object]:
    """Drawing n samples, as evaluations do."""
    experiment = shipped(case)
    model = to_device(experiment.model.build(experiment.data.shape), device)
    rng = torch.Generator(device).manual_seed(0)
    return lambda: draw(model, n, rng, at_once=n)


def measure(case: str, n: int, repeats: int, device: str) -> Row:
    """Seconds for 10,000 samples, from n at a time, in turns."""
    works = [alone(case, n, device), sampling(case, n, device)]
    turns = [[clock(work, device) for work in works] for _ in range(repeats + 1)]
    turns = turns[1:]  # the first warms up
    calls, drawn = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
    ratio = statistics.median(turn[1] / turn[0] for turn in turns)
    return Row(
        f"{case}, sampling {FULL:,}",
        calls * FULL / n,
        drawn * FULL / n,
        ratio,
        "≤ 1.11",
        f"{1 / ratio:.2f} of the rate of the network alone; {n} at a time",
    )


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    keep_freed_memory()
    table = Table("sampling", arguments.device)
    for case in arguments.cases:
        table.add(measure(case, arguments.samples, arguments.repeats, arguments.device))


if __name__ == "__main__":
    main()
