"""How figures look, and how they are written: the table of their values beside every picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from gpm_tune.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by people who see colours differently; markers differ as well.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
MEASURE = ["metric", "features", "samples", "split"]  # columns: what values are of, and depend on
FORMATS = (".csv", ".png", ".svg")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "gpm_tune",  # the same figure is the same file
    "svg.fonttype": "none",  # text stays text: searchable, and editable in a paper
}
DPI = 150


def new_figure(width: float = 6.4, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches; without pyplot, so without global state."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def look(index: int) -> tuple[str, str]:
    """Colour and marker of a figure's line or set of points of this number."""
    return COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]


def metric_title(metric: str, features: str | None, samples: float, split: str) -> str:
    """An axis's label: the metric, and all that its values depend on, as a row has them in MEASURE."""
    names = {"fid": "FID", "kid": "KID", "fid_infinity": "FID∞"}
    with_features = f"{features} features, " if pd.notna(features) else ""
    name = names.get(metric, metric.replace("_", " "))
    return f"{name} ({with_features}{samples:,.0f} samples, {split} split)"


def refuse_mixed(frame: pd.DataFrame, what: str, keys: Sequence[str]) -> None:
    """Raise UserError where rows that are to share an axis differ in what their values depend on.

    frame: has these columns, and one called `label` that names a row's origin.
    """
    for key in keys:
        groups = frame.groupby(key, dropna=False, sort=False)["label"].unique()
        if len(groups) > 1:
            listed = "; ".join(f"{value}: {', '.join(map(str, labels))}" for value, labels in groups.items())
            raise UserError(
                f"{what}: these differ in {key} and cannot share an axis ({listed}). Draw them apart, "
                f"or measure them alike"
            )


def check_output(output: Path) -> Path:
    """The path without an ending of ours. Raises UserError where there is no such folder."""
    path = output.with_suffix("") if output.suffix in FORMATS else output
    if not path.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {path.parent}")
    return path


def write(figure: Figure, values: pd.DataFrame, output: Path) -> list[Path]:
    """OUTPUT.csv with the values that the figure shows, OUTPUT.png and OUTPUT.svg; the files written."""
    files = [output.with_name(output.name + ending) for ending in FORMATS]
    values.to_csv(files[0], index=False)
    with rc_context(STYLE):
        figure.savefig(files[1], dpi=DPI)
        figure.savefig(files[2], metadata={"Date": None})
    return files
