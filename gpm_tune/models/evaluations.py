"""NFE: evaluations of the flow's network to produce one sample, counted where the network is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class EvaluationCounter:
    """Counts the rows that go through a network."""

    def __init__(self) -> None:
        self.rows = 0

    def nfe(self, samples: int) -> int:
        """Evaluations per sample, once `samples` of them have been made."""
        return round(self.rows / samples)

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.rows += len(inputs[0])


@contextmanager
def count_evaluations(network: nn.Module) -> Iterator[EvaluationCounter]:
    """Count what passes through the network within the block."""
    counter = EvaluationCounter()
    hook = network.register_forward_pre_hook(counter)
    try:
        yield counter
    finally:
        hook.remove()
