"""Samples in figures: images as tiles, points before the data; and where each picture came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from gpm_tune.analysis.figures import COLORS, STYLE
from gpm_tune.analysis.subjects import Subject, all_that_can_be_had
from gpm_tune.errors import UserError
from gpm_tune.training.generation import ModelSampler, interpolate, load_sampler
from gpm_tune.training.pictures import frame, tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 2.6  # inches, of a panel
SIDE_BY_SIDE = 4  # panels, at most
REAL = "#bbbbbb"
REAL_POINTS = 1000
CAPTION = "grey: data. Points beyond the frame are drawn on its edge."


@dataclass(frozen=True)
class Shown:
    """A trained model that is sampled for a figure."""

    subject: Subject
    sampler: ModelSampler
    real: Tensor | None  # points of the data (n, 2); None for images

    def simulated(self, n: int) -> int:
        """How many particles to simulate for n: those of a kernel flow interact, and need company."""
        least = self.subject.experiment.evaluation.batch_size
        return max(n, least) if self.sampler.model.flow.interacts else n

    def title(self, nfe: int) -> str:
        """What stands over a picture of its samples."""
        return f"{self.subject.label.replace(' (', chr(10) + '(')}\n{self.sampler.solver_name}, NFE {nfe}"

    def trace(self, nfe: int, seed: int) -> dict[str, Any]:
        """The row of a table that tells where a picture came from."""
        return {
            "label": self.subject.label,
            "run": self.subject.origin,
            "checkpoint": str(self.subject.saved.folder),
            "model": self.subject.model,
            "data": self.subject.experiment.data_label,
            "solver": self.sampler.solver_name,
            "sampling_steps": self.sampler.sampling_steps,
            "nfe": nfe,
            "seed": seed,
        }


def load_shown(subjects: Sequence[Subject], nfe: int | None, device: str) -> list[Shown]:
    """Ready to be sampled at an NFE, or at their full one; generators always at theirs, 1.

    One that cannot be sampled so is left out with a warning. Raises UserError where that leaves none.
    """

    def load(subject: Subject) -> Shown:
        try:
            return _load(subject, nfe, device)
        except UserError as error:
            raise UserError(f"{subject.label}: {error}") from None

    return all_that_can_be_had(subjects, load)


def _load(subject: Subject, nfe: int | None, device: str) -> Shown:
    experiment = subject.experiment
    sampler = load_sampler(subject.saved, nfe=None if experiment.model.has_generator else nfe, device=device)
    points = len(experiment.data.shape) == 1
    real = experiment.data.load(experiment.seed).validation[:REAL_POINTS] if points else None
    return Shown(subject, sampler, real)


def panels(heights: Sequence[float], columns: int, width: float) -> tuple[Figure, list[list[Axes]]]:
    """Rows of axes for pictures, in inches; empty ones are hidden until something is shown in them."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for each in axes.flat:
        each.set_visible(False)
    return figure, axes.tolist()


def show(axes: Axes, x: Tensor, columns: int, real: Tensor | None, followed: int = 0) -> None:
    """Images (n, C, H, W) as tiles in so many columns, or points (n, 2) before real ones.

    followed: so many of the points are coloured, each the same in every picture of a process.
    """
    axes.set_visible(True)
    axes.grid(False)
    if real is None:
        axes.imshow(tile(x, columns).permute(1, 2, 0).numpy(), interpolation="none")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return
    first, second = _within(axes, x, real)
    axes.scatter(first[followed:], second[followed:], s=2, c=COLORS[0], linewidths=0, rasterized=True)
    colors = [COLORS[1 + i % (len(COLORS) - 1)] for i in range(followed)]
    axes.scatter(first[:followed], second[:followed], s=12, c=colors, linewidths=0)
    for cloud in axes.collections:
        cloud.set_clip_on(False)


def show_paths(axes: Axes, x: Tensor, real: Tensor | None) -> None:
    """Interpolations (rows, columns, *shape): a row of tiles, or a line through points, for each."""
    if real is None:
        show(axes, x.flatten(0, 1), x.shape[1], real)
        return
    axes.set_visible(True)
    axes.grid(False)
    for i, path in enumerate(zip(*_within(axes, x, real), strict=True)):
        axes.plot(*path, ".-", color=COLORS[i % len(COLORS)], linewidth=0.8, markersize=3, clip_on=False)


def _within(axes: Axes, x: Tensor, real: Tensor) -> np.ndarray:
    """Show real points (n, 2), which set the axes; both coordinates of x (..., 2), moved into the frame."""
    low, high = frame(real)
    axes.scatter(real[:, 0].numpy(), real[:, 1].numpy(), s=2, color=REAL, linewidths=0, rasterized=True)
    axes.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()), aspect="equal")
    axes.tick_params(labelsize=7)
    axes.spines[:].set_visible(True)
    inside: np.ndarray = x.double().clamp(low, high).movedim(-1, 0).numpy()
    return inside


def caption(figure: Figure, shown: Sequence[Shown]) -> None:
    """Say how points are drawn, where there are any."""
    if any(each.real is not None for each in shown):
        figure.supxlabel(CAPTION, fontsize=7)


def _height(shown: Shown, rows: int, columns: int) -> float:
    """Inches of a panel with so many tiles, or with points, whose axes are square."""
    return SIDE * (rows / columns if shown.real is None else 1.0)


def samples_figure(
    shown: Sequence[Shown], n: int | None, columns: int, seed: int
) -> tuple[Figure, pd.DataFrame]:
    """Uncurated samples of every model, of the same seed, side by side (Figures 2 and 3).

    n: per model; None for 64 images, or 1,000 points. The table has a row per model.
    """
    across = min(len(shown), SIDE_BY_SIDE)
    down = math.ceil(len(shown) / across)
    counts = [n or (64 if each.real is None else 1000) for each in shown]
    highest = max(
        _height(each, math.ceil(count / columns), columns) for each, count in zip(shown, counts, strict=True)
    )
    figure, axes = panels([highest + 0.5] * down, across, SIDE * across)
    rows = []
    for i, (each, count) in enumerate(zip(shown, counts, strict=True)):
        simulated = each.simulated(count)
        nfe, x = each.sampler.draw(simulated, seed)
        panel = axes[i // across][i % across]
        show(panel, x[:count], columns, each.real)
        panel.set_title(each.title(nfe), fontsize=9)
        rows.append({**each.trace(nfe, seed), "samples": count, "simulated": simulated})
    caption(figure, shown)
    return figure, pd.DataFrame(rows)


def interpolation_figure(
    shown: Sequence[Shown], methods: Sequence[str], rows: int, columns: int, seed: int
) -> tuple[Figure, pd.DataFrame]:
    """Between the same pairs of noises: a row of panels per model, a panel per method (Figure 5).

    The table has a row per panel. Raises UserError where a method is unknown.
    """
    heights = [_height(each, rows, columns) + 0.4 for each in shown]
    figure, axes = panels(heights, len(methods), SIDE * len(methods) + 0.4)
    table = []
    for each, line in zip(shown, axes, strict=True):
        for method, panel in zip(methods, line, strict=True):
            nfe, x = interpolate(each.sampler, rows=rows, columns=columns, seed=seed, method=method)
            show_paths(panel, x, each.real)
            panel.set_title(method, fontsize=9)
            table.append({**each.trace(nfe, seed), "method": method, "rows": rows, "columns": columns})
        line[0].set_ylabel(each.title(nfe), fontsize=9)
    caption(figure, shown)
    return figure, pd.DataFrame(table)
