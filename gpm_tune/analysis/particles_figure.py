"""Figures 8 to 12 drawn: particles as dots, data as diamonds, directions as arrows; stills and animations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from gpm_tune.analysis.animation import write_animation
from gpm_tune.analysis.figures import COLORS, STYLE
from gpm_tune.analysis.particles import DRAWS, Scene, Snapshot
from gpm_tune.analysis.subjects import model_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
SIDE = 2.5  # inches
ARROW = 0.12  # the longest one, in widths of a panel
BRIGHTEN = 0.6  # of the background's range, so that its lowest is not black
GENERATED, DATA = COLORS[0], COLORS[2]
ARROW_COLORS = {"direction": COLORS[6], "data_score": COLORS[5], "generated_score": COLORS[4]}
ARROW_NAMES = {
    "direction": "direction of the flow",
    "data_score": "data score",
    "generated_score": "minus the score of the generated distribution",
}


def table(scene: Scene, snapshots: Sequence[Snapshot]) -> pd.DataFrame:
    """A row per particle and panel, with its arrows; and a row per point of the data."""
    frames = [
        pd.DataFrame(
            {
                **scene.trace,
                "panel": panel,
                **snapshot.moment,
                "kind": "generated",
                "particle": range(len(snapshot.x)),
                **_columns("", snapshot.x),
                **{
                    key: v
                    for name, a in snapshot.arrows.items()
                    for key, v in _columns(f"{name}_", a).items()
                },
            }
        )
        for panel, snapshot in enumerate(snapshots)
    ]
    data = {**scene.trace, "kind": "data", "particle": range(len(scene.data)), **_columns("", scene.data)}
    return pd.concat([*frames, pd.DataFrame(data)], ignore_index=True)


def _columns(prefix: str, x: Tensor) -> dict[str, np.ndarray]:
    return {f"{prefix}x": x[:, 0].numpy(), f"{prefix}y": x[:, 1].numpy()}


def draw(scene: Scene, snapshots: Sequence[Snapshot]) -> Figure:
    """A panel per snapshot."""
    columns = min(COLUMNS, len(snapshots))
    rows = -(-len(snapshots) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(SIDE * columns, (SIDE + 0.3) * rows + 0.7), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel in axes.flat[len(snapshots) :]:
            panel.set_visible(False)
        for panel, snapshot in zip(axes.flat, snapshots, strict=False):
            _show(panel, scene, snapshot)
        _explain(figure, scene, snapshots, columns)
    return figure


def _show(axes: Axes, scene: Scene, snapshot: Snapshot) -> None:
    half, x, data = snapshot.half, snapshot.x.numpy(), scene.data.numpy()
    axes.grid(False)
    if snapshot.loss is not None:
        low, high = snapshot.loss.min().item(), snapshot.loss.max().item()
        extent = (-half, half, -half, half)
        dark = low - BRIGHTEN * (high - low)
        axes.imshow(snapshot.loss, cmap="gray", vmin=dark, vmax=high, extent=extent, origin="lower")
    axes.scatter(data[:, 0], data[:, 1], s=9, marker="D", c=DATA, edgecolors="white", linewidths=0.2)
    longest = max((arrow.norm(dim=1).max().item() for arrow in snapshot.arrows.values()), default=0.0)
    for name, arrow in snapshot.arrows.items():
        axes.quiver(
            *x.T,
            *arrow.numpy().T,
            color=ARROW_COLORS[name],
            angles="xy",
            scale_units="xy",
            scale=max(longest, 1e-12) / (ARROW * 2 * half),
            width=0.005,
            zorder=2.5,
        )
    axes.scatter(x[:, 0], x[:, 1], s=10, c=GENERATED, edgecolors="white", linewidths=0.3, zorder=3)
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    axes.spines[:].set_visible(True)
    axes.tick_params(labelsize=6, length=2)
    size = f"longest arrow: {longest:.2g}" if snapshot.arrows else "end of the path"
    axes.set_title(f"{snapshot.title}\n{size}", fontsize=7.5)


def _explain(figure: Figure, scene: Scene, snapshots: Sequence[Snapshot], columns: int) -> None:
    """The legend, and what the figure, of so many columns, shows of which model."""
    names = list(dict.fromkeys(name for snapshot in snapshots for name in snapshot.arrows))
    dots = [("generated", GENERATED, "o"), ("data", DATA, "D")]
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=4, label=label)
        for label, color, marker in dots
    ]
    handles += [Line2D([], [], color=ARROW_COLORS[name], label=ARROW_NAMES[name]) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(2, columns), fontsize=8)
    parts = [f"{model_title(scene.origin.experiment.model.name)} ({scene.origin.name})"]
    if scene.noise is not None:
        parts.append(f"generated particles with noise of σ = {scene.noise:g}")
    elif scene.model.flow.is_random:
        parts.append(f"arrows: means over {DRAWS} draws of noise")
    if any(snapshot.loss is not None for snapshot in snapshots):
        parts.append("background: pointwise generator loss, darker is lower, renormalised in each panel")
    figure.suptitle(("; " if columns > 2 else "\n").join(parts), fontsize=8)


def animate(scene: Scene, snapshots: Sequence[Snapshot], file: Path) -> None:
    """Write a frame per snapshot."""
    with rc_context(STYLE):
        figure = Figure(figsize=(SIDE * 2, SIDE * 2 + 0.9), layout="constrained", dpi=100)
        axes = figure.add_subplot()
        _explain(figure, scene, snapshots, 1)

    def show(snapshot: Snapshot) -> None:
        axes.clear()
        _show(axes, scene, snapshot)

    write_animation(figure, show, snapshots, file)
