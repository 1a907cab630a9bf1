"""Table 3: models by data sets, as frame, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from gpm_tune.analysis.figures import MEASURE, metric_title
from gpm_tune.training.objectives import shown

LATEX = str.maketrans({"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "∞": r"$_\infty$"})


def quality_table(points: pd.DataFrame) -> pd.DataFrame:
    """A row per label, a column per data set with its conditions; cells as `value ± error`.

    points: as of `over_seeds`, one per label and data set.
    """
    rows = points.to_dict("records")
    cells = pd.DataFrame(
        {
            "model": points["label"],
            "column": [_column(row) for row in rows],
            "cell": [_cell(row) for row in rows],
        }
    )
    table = cells.pivot(index="model", columns="column", values="cell").fillna("-")
    return table.loc[list(dict.fromkeys(points["label"]))].reset_index().rename_axis(columns=None)


def _column(point: Mapping[Hashable, Any]) -> str:
    return f"{point['data']}: {metric_title(*(point[key] for key in MEASURE))}"


def _cell(point: Mapping[Hashable, Any]) -> str:
    error = "" if pd.isna(point["error"]) else f" ± {shown(point['error'], 2)}"
    seeds = f" ({point['seeds']} seeds)" if point["seeds"] > 1 else ""
    return f"{shown(point['value'])}{error}{seeds}"


def markdown(table: pd.DataFrame) -> str:
    """The table as GitHub's Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def latex(table: pd.DataFrame) -> str:
    """The table as LaTeX with booktabs."""
    body = [_line(row) for row in table.itertuples(index=False)]
    columns = "l" + "c" * (len(table.columns) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line(table.columns), r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Sequence[object]) -> str:
    return " & ".join(str(cell).translate(LATEX) for cell in cells) + r" \\"
