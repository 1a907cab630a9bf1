"""A chart as plain data, and its two drawings: matplotlib's for a paper, plotly's for a page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gpm_tune.analysis.figures import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_WIDTH, SINGLE_WIDTH, PANEL_HEIGHT, ROW_HEIGHT = 4.6, 6.4, 3.6, 0.4  # inches
COLUMNS = 3
PIXELS = 360  # height of a panel on a page
ROW_PIXELS = 34  # of a bar
TITLE_WIDTH = 36  # characters of an axis's title before it goes on in a second line
FEW_DECADES = 300  # ratio of the ends of a logarithmic axis, up to which it has ticks at 2 and 5
FEW_WHOLE = 10  # whole numbers of an axis that each have a tick
FEW_VALUES = 6  # whole numbers of a logarithmic axis that each have a tick
OPAQUE, FAINT = 1.0, 0.5
SYMBOLS = {  # plotly's names of matplotlib's markers
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}


@dataclass(frozen=True)
class Series:
    """Points, a line, or bars of one look; where labels repeat, the legend has the first."""

    x: Sequence[Any]
    y: Sequence[Any]
    color: str
    label: str = ""
    kind: Literal["line", "steps", "points", "bars"] = "line"  # bars are horizontal: y are their names
    marker: str = ""
    width: float = 1.5
    opacity: float = OPAQUE
    hover: Sequence[str] = ()
    error: Sequence[float] = ()  # half the length of error bars along y


@dataclass(frozen=True)
class Panel:
    """One pair of axes. An axis whose values are text has a place for each."""

    x_title: str
    y_title: str
    series: list[Series]
    x_log: bool = False
    y_log: bool = False
    texts: list[tuple[float, str, str]] = field(default_factory=list)  # x, y, text; the x axis has no ticks


@dataclass(frozen=True)
class Chart:
    """A figure: one or several panels, the values in them, and what they say in words."""

    key: str  # ends the names of its files
    title: str
    alt: str  # for those who do not see it
    frame: pd.DataFrame
    panels: list[Panel]
    note: str = ""


def draw(chart: Chart) -> Figure:
    """The chart's panels side by side, by matplotlib."""
    columns = min(COLUMNS, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    width = PANEL_WIDTH * columns if columns > 1 else SINGLE_WIDTH
    height = max(_height(panel) for panel in chart.panels)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height * rows + 0.4), layout="constrained")
        handles: dict[str, Any] = {}
        for index, panel in enumerate(chart.panels, start=1):
            axes = figure.add_subplot(rows, columns, index)
            for series in panel.series:
                handle = _draw_series(axes, series)
                if series.label:
                    handles.setdefault(series.label, handle)
            _dress(axes, panel)
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    return figure


def _height(panel: Panel) -> float:
    """In inches."""
    bars = sum(len(series.y) for series in panel.series)
    return 0.9 + ROW_HEIGHT * bars if _are_bars(panel) else PANEL_HEIGHT


def _draw_series(axes: Axes, series: Series) -> Any:
    look: dict[str, Any] = {"color": series.color, "alpha": series.opacity}
    if series.kind == "bars":
        bars = axes.barh(list(series.y), list(series.x), height=0.6, **look)
        axes.bar_label(bars, [f"{value:.3g}" for value in series.x], padding=3)
        return bars
    line = "none" if series.kind == "points" else "-"
    form = "steps-post" if series.kind == "steps" else "default"
    marker: dict[str, Any] = {
        "marker": series.marker or "none",
        "markersize": 9 if series.marker == "*" else 6,
    }
    if series.error:
        return axes.errorbar(series.x, series.y, series.error, linestyle=line, capsize=5, **marker, **look)
    drawn = axes.plot(
        series.x, series.y, linestyle=line, drawstyle=form, linewidth=series.width, **marker, **look
    )
    return drawn[0]


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(textwrap.fill(panel.x_title, TITLE_WIDTH))
    axes.set_ylabel(textwrap.fill(panel.y_title, TITLE_WIDTH))
    at, values = _values(panel)
    _set_scale(axes, "x", panel.x_log, at)
    _set_scale(axes, "y", panel.y_log, values)
    if _are_bars(panel):
        axes.invert_yaxis()
        axes.margins(x=0.15)
    if panel.texts:
        axes.set_xticks([])
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.15)
    for x, y, text in panel.texts:
        axes.annotate(text, (x, y), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8)


def _set_scale(axes: Axes, name: Literal["x", "y"], log: bool, values: list[Any]) -> None:
    axis = axes.xaxis if name == "x" else axes.yaxis
    kind = _kind(log, values)
    if kind == "log":
        axes.set_xscale("log") if name == "x" else axes.set_yscale("log")
    if kind == "log" and (ticks := _ticks(values)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    if kind == "whole":
        axis.set_major_locator(MaxNLocator(integer=True))


def _kind(log: bool, values: list[Any]) -> str:
    """What stands on an axis."""
    if any(isinstance(value, str) for value in values):
        return "category"
    if log:
        return "log"
    return "whole" if all(isinstance(value, int | np.integer) for value in values) else "linear"


def _ticks(values: list[Any]) -> list[float]:
    """Ticks of a logarithmic axis: its values if they are few whole numbers, as NFE are; else at 1, 2 and 5.

    None where it has many decades: those at 1 will do.
    """
    known = [value for value in values if pd.notna(value) and value > 0]
    if _kind(False, known) == "whole" and len(set(known)) <= FEW_VALUES:
        return [float(value) for value in sorted(set(known))]
    if not known or max(known) / min(known) > FEW_DECADES:
        return []
    decades = range(math.floor(math.log10(min(known))), math.floor(math.log10(max(known))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [tick for tick in ticks if min(known) / 2 < tick < max(known) * 2]


def _values(panel: Panel) -> tuple[list[Any], list[Any]]:
    return [v for s in panel.series for v in s.x], [v for s in panel.series for v in s.y]


def for_plotly(panel: Panel) -> dict[str, Any]:
    """A panel as plotly's data and layout. Colours of text and grid are the page's."""
    x, y = _values(panel)
    labels = [series.label for series in panel.series]
    data = [
        _trace(s, is_first=bool(s.label) and s.label not in labels[:i]) for i, s in enumerate(panel.series)
    ]
    layout: dict[str, Any] = {
        "height": PIXELS,
        "margin": {"l": 10, "r": 14, "t": 14, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 13},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "showlegend": any(labels),
        "hovermode": "closest",
        "xaxis": _axis(panel.x_title, panel.x_log, x),
        "yaxis": _axis(panel.y_title, panel.y_log, y),
    }
    if _are_bars(panel):
        layout["yaxis"]["autorange"] = "reversed"
        layout["height"] = 90 + ROW_PIXELS * sum(len(series.y) for series in panel.series)
    if panel.texts:
        layout["xaxis"] |= {"showticklabels": False, "showgrid": False, "range": [-0.12, 1.12]}
        layout["height"] = 120 + 2 * ROW_PIXELS * len({y for _, y, _ in panel.texts})
    layout["annotations"] = [
        {"x": x, "y": y, "text": text, "showarrow": False, "yshift": 12, "font": {"size": 11}}
        for x, y, text in panel.texts
    ]
    return {"data": data, "layout": layout}


def _trace(series: Series, is_first: bool) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "x": _plain(series.x),
        "y": _plain(series.y),
        "name": series.label,
        "showlegend": is_first,
        "legendgroup": series.label,
        "opacity": series.opacity,
        "marker": {"color": series.color},
        "hovertext": list(series.hover),
        "hoverinfo": "text" if series.hover else "x+y",
    }
    if series.kind == "bars":
        texts = [f"{value:.3g}" for value in series.x]
        return trace | {"type": "bar", "orientation": "h", "text": texts, "textposition": "auto"}
    modes = ([] if series.kind == "points" else ["lines"]) + (["markers"] if series.marker else [])
    trace |= {"type": "scatter", "mode": "+".join(modes)}
    shape = "hv" if series.kind == "steps" else "linear"
    trace["line"] = {"color": series.color, "width": series.width, "shape": shape}
    if series.marker:
        trace["marker"] |= {"symbol": SYMBOLS[series.marker], "size": 13 if series.marker == "*" else 8}
    if series.error:
        trace["error_y"] = {"type": "data", "array": _plain(series.error), "color": series.color}
    return trace


def _axis(title: str, log: bool, values: list[Any]) -> dict[str, Any]:
    kind = _kind(log, values)
    text = "<br>".join(textwrap.wrap(title, TITLE_WIDTH))
    axis: dict[str, Any] = {"title": {"text": text, "font": {"size": 12}, "standoff": 12}, "automargin": True}
    axis |= {"type": "linear" if kind == "whole" else kind, "zeroline": False}
    if kind == "log":
        ticks = _ticks(values)
        axis |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]} if ticks else {"dtick": 1}
    if kind == "whole" and values and max(values) - min(values) <= FEW_WHOLE:
        axis["dtick"] = 1
    return axis


def _plain(values: Sequence[Any]) -> list[Any]:
    """As JSON has them: what is not finite is null, NumPy's numbers are Python's."""
    plain = [None if pd.isna(v) else v.item() if hasattr(v, "item") else v for v in values]
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in plain]


def _are_bars(panel: Panel) -> bool:
    return any(series.kind == "bars" for series in panel.series)
