"""Figure 7: quality against NFE, with the Pareto front over all."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter, StrMethodFormatter

from gpm_tune.analysis.figures import MEASURE, look, metric_title, new_figure
from gpm_tune.analysis.quality import pareto_front
from gpm_tune.analysis.subjects import Subject
from gpm_tune.errors import UserError
from gpm_tune.metrics import MODES


def default_nfe(subjects: Sequence[Subject]) -> list[int]:
    """Powers of two up to the longest grid among the models."""
    longest = max(1, *(subject.sampling_steps for subject in subjects))
    return [2**k for k in range(longest.bit_length())]


def with_a_process(subjects: Sequence[Subject]) -> list[Subject]:
    """Those that have a process of generation. Raises UserError where none has."""
    found = [subject for subject in subjects if subject.sampling_steps]
    if not found:
        raise UserError("these models sample by their generator, at NFE 1: there is nothing to stop early")
    return found


def stops(subjects: Sequence[Subject], every: int, steps: int | None) -> list[int]:
    """Every so many NFE of the longest process, and the end of each; a second-order solver needs twice N."""
    ends = {subject.sampling_steps for subject in subjects}
    longest = 2 * max(*ends, steps or 0)
    return sorted({*range(every, longest + 1, every), *ends, longest})


def with_front(points: pd.DataFrame, subjects: Sequence[Subject]) -> pd.DataFrame:
    """The points, each with the name of its `series`, and whether it is on the `pareto` front of all.

    subjects: the models that were measured.
    """
    any_grid = {subject.label for subject in subjects if subject.any_grid}
    metric = points["metric"].iloc[0]
    sign = 1 if MODES[metric] == "min" else -1
    front = pareto_front(points["nfe"].to_numpy(), sign * points["value"].to_numpy())
    series = [
        _series(row.label, row.label in any_grid, row.solver, row.sampling_steps)
        for row in points.itertuples()
    ]
    return points.assign(series=series, pareto=front).sort_values(["series", "nfe"], ignore_index=True)


def _series(label: str, any_grid: bool, solver: str, steps: float) -> str:
    """What the points of a line have in common."""
    if solver == "generator":
        return label
    return f"{label}, {solver}" if any_grid else f"{label}, {solver}, N = {steps:.0f}, stopped early"


def draw(points: pd.DataFrame, *, front: bool = True) -> Figure:
    """A line per series against NFE, both axes logarithmic where values allow."""
    figure, axes = new_figure()
    for index, (name, line) in enumerate(points.groupby("series", sort=False)):
        color, marker = look(index)
        axes.errorbar(
            line["nfe"],
            line["value"],
            yerr=line["error"].fillna(0.0),
            label=f"{name}{_seeds(line)}",
            color=color,
            marker=marker,
            capsize=3,
            linewidth=1.2,
        )
    if front:
        best = points[points["pareto"]].sort_values("nfe")
        costs = [*best["nfe"], points["nfe"].max()]  # the best holds for all that may cost more, too
        values = [*best["value"], best["value"].iloc[-1]]
        axes.step(costs, values, where="post", color="0.5", linestyle=":", label="Pareto front")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if (points["value"] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter() if _spans_decades(points) else ScalarFormatter())
    axes.set_xlabel("NFE")
    axes.set_ylabel(metric_title(*points.iloc[0][MEASURE]))
    axes.legend(fontsize=8)
    return figure


def _spans_decades(points: pd.DataFrame) -> bool:
    return bool(points["value"].max() > 30 * points["value"].min())


def _seeds(line: pd.DataFrame) -> str:
    most = int(line["seeds"].max())
    return f" ({most} seeds)" if most > 1 else ""
