"""The table of measured speeds: one row each, kept with date, machine and command."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.machine import RESULTS, machine


class Row(NamedTuple):
    """Seconds of a baseline and of ours, and the median of their ratio in turns: ours / baseline."""

    what: str
    baseline: float
    ours: float
    ratio: float
    goal: str
    notes: str

    def __str__(self) -> str:
        numbers = f"{self.baseline:.4g} | {self.ours:.4g} | {self.ratio:.2f}"
        return f"| {self.what} | {numbers} | {self.goal} | {self.notes} |"


def write(name: str, device: str, peak: float, rows: Sequence[Row]) -> None:
    """Print the table, and keep it in a file of today."""
    today = datetime.date.today().isoformat()
    where = machine(("torch", "torchvision", "torchmetrics"))
    module = "benchmarks" if name == "speed" else f"benchmarks.{name}"
    module = "benchmarks" if name == "speed" else f"benchmarks.{name}"
    command = " ".join(["python", "-m", module, *sys.argv[1:]])
    lines = [
        f"# Speed: {name}",
        "",
        f"{today}, `{command}`",
        "",
        ", ".join(f"{key} {value}" for key, value in where.items()),
        f"float32 matrix products: {peak / 1e9:.0f} GFLOP/s at best",
        "",
        "| what | baseline, s | ours, s | ours / baseline | goal | |",
        "| --- | --- | --- | --- | --- | --- |",
        *map(str, rows),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    (RESULTS / f"{today}-{name}-{device}.md").write_text(text)
