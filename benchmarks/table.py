"""Tables of what was measured, kept with date, machine and command."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.machine import RESULTS, machine, product_peak


class Row(NamedTuple):
    """Seconds of a baseline in float32 and of ours, and the median of their ratio in turns."""

    what: str
    baseline: float
    ours: float
    ratio: float
    goal: str
    notes: str

    def __str__(self) -> str:
        numbers = f"{self.baseline:.4g} | {self.ours:.4g} | {self.ratio:.2f}"
        return f"| {self.what} | {numbers} | {self.goal} | {self.notes} |"


class Table:
    """Prints rows, and keeps those that there are in a file of today and this minute."""

    def __init__(self, name: str, device: str) -> None:
        """Look at the machine, while nothing runs yet; `peak`: FLOP/s of its float32 products."""
        now = datetime.datetime.now()
        self.peak = product_peak(device)
        self._file = RESULTS / f"{now:%Y-%m-%d-%H%M}-{name}-{device}.md"
        module = "benchmarks" if name == "speed" else f"benchmarks.{name}"
        packages = ("torch", "torchvision", "torchmetrics", "torch-fidelity")
        self._lines = [
            f"# Speed: {name}",
            "",
            f"{now:%Y-%m-%d}, `{' '.join(['python', '-m', module, *sys.argv[1:]])}`",
            "",
            ", ".join(f"{key} {value}" for key, value in machine(packages).items())
            + f"; float32 matrix products {self.peak / 1e9:.0f} GFLOP/s at best",
            "",
            "| what | baseline, s | ours, s | ours / baseline | goal | |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        print("\n".join(self._lines), flush=True)

    def add(self, row: Row) -> None:
        """Print a row, and keep the file up to date."""
        print(row, flush=True)
        self._lines.append(str(row))
        self._file.write_text("\n".join([*self._lines, ""]))


def origin(module: str) -> dict[str, Any]:
    """When, how and where a module of the benchmarks measures a study's costs."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
        "machine": machine(("torch", "ray", "optuna", "mlflow")),
    }


def markdown(
    title: str, found: Mapping[str, Any], columns: Sequence[str], rows: Iterable[Sequence[str]], note: str
) -> str:
    """A table for people; found: as of `origin`."""
    lines = [f"# {title}", "", f"{found['date']}, `{found['command']}`", ""]
    lines += [", ".join(f"{key} {value}" for key, value in found["machine"].items()), ""]
    lines += [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", note, ""])
