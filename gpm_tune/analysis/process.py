"""The process of generation of free particles: in rows of pictures, and animated (Figure 1)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from gpm_tune.analysis.animation import FRAMES, write_animation
from gpm_tune.analysis.pictures import SIDE, Shown, caption, panels, show
from gpm_tune.errors import UserError
from gpm_tune.models import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 10
PANEL = 0.85  # inches, the width of a column
FOLLOWED = 5  # points that are coloured
TILES = 8  # columns of images in an animation

_log = logging.getLogger("gpm_tune")


@dataclass(frozen=True)
class Process:
    """The same particles, from the prior to the samples."""

    shown: Shown
    states: list[Samples]  # by NFE, from 0
    part: str = "all"

    @property
    def label(self) -> str:
        """Of its row of pictures."""
        lines = [*self.shown.subject.label.split(), *([self.part] if self.part != "all" else [])]
        return "\n".join(lines)

    def at(self, nfe: int) -> Samples:
        """Where it is when so many evaluations were spent."""
        return [state for state in self.states if state.nfe <= nfe][-1]


def free(shown: Sequence[Shown]) -> list[Shown]:
    """Those that have a process; generators are left out with a warning.

    Raises UserError where there are only generators.
    """
    found = [each for each in shown if each.sampler.model.steps]
    others = ", ".join(each.subject.label for each in shown if each not in found)
    why = "a generator makes a sample from noise of another shape by a single evaluation: no process to show"
    if not found:
        raise UserError(f"{others}: {why}. Give a model without generator, or draw analysis/samples.py")
    if others:
        _log.warning("left out: %s: %s", others, why)
    return found


def simulate(shown: Shown, n: int | None, images: int, seed: int) -> Process:
    """n particles on their way; None for so many images, or 500 points."""
    count = n or (images if shown.real is None else 500)
    states = shown.sampler.process(shown.simulated(count), seed)
    return Process(shown, [Samples(nfe, x[:count]) for nfe, x in states])


def choose(process: Process, every: int | None) -> Process:
    """The process in some columns: the first and the last, and one every so many evaluations.

    every: None for as many steps from column to column as make at most ten of them.
    """
    states = process.states
    if every is None:
        stride = math.ceil((len(states) - 1) / (COLUMNS - 1))
        return Process(process.shown, [*states[:-1:stride], states[-1]])
    wanted = [*range(0, states[-1].nfe, every), states[-1].nfe]
    chosen = {min(states, key=lambda state: abs(state.nfe - nfe)).nfe for nfe in wanted}
    return Process(process.shown, [state for state in states if state.nfe in chosen])


def first(processes: Iterable[Process], steps: int) -> list[Process]:
    """The first steps of the models that can be stopped on their way, as Discriminator Flows can."""
    early = [process for process in processes if not process.shown.sampler.model.any_grid]
    if not early:
        raise UserError("--first: no Discriminator Flow or kernel flow was given, which alone can stop early")
    return [Process(p.shown, p.states[: steps + 1], f"first {steps} steps") for p in early]


def process_figure(processes: Sequence[Process], seed: int) -> tuple[Figure, pd.DataFrame]:
    """A block of rows per process: particles from left to right, by NFE. The table has a row per picture."""
    columns = max(len(process.states) for process in processes)
    heights = [PANEL * (len(p.states[0].x) if p.shown.real is None else 1) + 0.3 for p in processes]
    figure, axes = panels(heights, columns, PANEL * columns + 0.8)
    figure.set_layout_engine("constrained", w_pad=0.03, wspace=0.0)
    rows = []
    for process, line in zip(processes, axes, strict=True):
        for (nfe, x), panel in zip(process.states, line, strict=False):
            _show(panel, process, x, 1)
            panel.set_title(f"NFE {nfe}", fontsize=8)
            trace = process.shown.trace(nfe, seed)
            rows.append({**trace, "part": process.part, "particles": len(x)})
        line[0].set_ylabel(process.label, fontsize=8, rotation=0, ha="right", va="center")
    caption(figure, [process.shown for process in processes])
    return figure, pd.DataFrame(rows)


def _show(panel: Axes, process: Process, x: Tensor, columns: int) -> None:
    show(panel, x, columns, process.shown.real, FOLLOWED)
    panel.set(xticks=[], yticks=[])


def animate(processes: Sequence[Process], file: Path) -> None:
    """Write all processes side by side, at the same NFE at the same time; who is done waits."""
    figure, (line,) = panels([SIDE + 0.8], len(processes), SIDE * len(processes))
    total = max(process.states[-1].nfe for process in processes)
    clock = np.unique(np.linspace(0, total, min(total + 1, FRAMES)).round().astype(int)).tolist()
    caption(figure, [process.shown for process in processes])

    def show_at(now: int) -> None:
        for process, panel in zip(processes, line, strict=True):
            nfe, x = process.at(now)
            panel.clear()
            _show(panel, process, x, TILES)
            title = f"{process.shown.subject.label}\nNFE {nfe} of {process.states[-1].nfe}"
            panel.set_title(title, fontsize=9)

    write_animation(figure, show_at, clock, file)
