"""Trained models measured at many NFE, as a tidy frame: over seeds where there are, with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gpm_tune.analysis.figures import refuse_mixed
from gpm_tune.analysis.subjects import Subject
from gpm_tune.study.storage.home import Home
from gpm_tune.training.generation import takes_solver
from gpm_tune.training.sweep import Conditions, Measurement, evaluate

# What values must share to be compared, besides the name of the data.
CONDITIONS = ["data_fingerprint", "features", "samples", "split"]
RESAMPLES = 50


def measure(
    subjects: Sequence[Subject],
    home: Home,
    conditions: Conditions,
    device: str,
    *,
    nfe: Sequence[int] = (),
    solvers: Sequence[str] = (),
    one_grid: bool = False,
    steps: int | None = None,
) -> pd.DataFrame:
    """A row per model, solver and NFE: origin, conditions, every metric, and METRIC_error.

    NFE and solvers that a kind of model does not have are left out for it: a generator has NFE 1, a
    Discriminator Flow at most its own. one_grid: lower NFE leave one grid early for all models, of
    so many `steps` where the model knows every grid; else that one takes a grid for each NFE.
    """
    rows = []
    for subject in subjects:
        any_grid = subject.any_grid
        found = evaluate(
            subject.saved,
            nfe=[n for n in nfe if any_grid or n <= subject.full_nfe],
            solvers=[name for name in solvers if takes_solver(subject.experiment, name)],
            conditions=conditions,
            cache=home.cache,
            device=device,
            steps=(steps or subject.sampling_steps) if one_grid and any_grid else None,
        )
        rows += [_row(subject, measurement) for measurement in found]
    return pd.DataFrame(rows)


def refuse_different(subjects: Sequence[Subject], samples: int | None) -> None:
    """Raise UserError, before anything is measured, where models cannot share an axis."""
    rows = [
        {
            "label": subject.label,
            "data": subject.experiment.data_label,
            "data_fingerprint": subject.saved.record.data,
            "shape": subject.experiment.data.shape,
            "evaluation.features": subject.experiment.features,
            "evaluation.samples": samples or subject.experiment.evaluation.samples,
        }
        for subject in subjects
    ]
    refuse_mixed(pd.DataFrame(rows), "the models", [key for key in rows[0] if key != "label"])


def _row(subject: Subject, measured: Measurement) -> dict[str, Any]:
    errors = {f"{metric}_error": value for metric, value in measured.errors.items()}
    return {
        "label": subject.label,
        "model": subject.model,
        "data": subject.experiment.data_label,
        "data_fingerprint": measured.data_fingerprint,
        "origin": subject.origin,
        "checkpoint": str(subject.saved.folder),
        "seed": subject.experiment.seed,
        "solver": measured.solver,
        "sampling_steps": measured.sampling_steps,
        "nfe": measured.nfe,
        "features": measured.features,
        "samples": measured.samples,
        "split": measured.split,
        "sampling_seed": measured.seed,
        **measured.metrics,
        **errors,
    }


def over_seeds(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A row per label, solver, grid and NFE: `value`, `error`, and the number of `seeds`.

    error: of one seed the standard error over samples, of several the standard deviation over them.
    """
    keys = ["label", "model", "data", "solver", "sampling_steps", "nfe", *CONDITIONS]
    frame = frame.assign(**{f"{metric}_error": frame.get(f"{metric}_error", np.nan)})
    rows = []
    for key, group in frame.groupby(keys, dropna=False, sort=False):
        spread = group[metric].std(ddof=1) if len(group) > 1 else group[f"{metric}_error"].iloc[0]
        values = {"metric": metric, "value": group[metric].mean(), "error": spread, "seeds": len(group)}
        rows.append({**dict(zip(keys, key, strict=True)), **values, "origin": " ".join(group["origin"])})
    return pd.DataFrame(rows)


def points_of(frame: pd.DataFrame, subjects: Sequence[Subject], metric: str | None) -> pd.DataFrame:
    """Of what was measured one metric, over seeds: the one asked for, or of every data set its own."""
    defaults = {s.experiment.data_label: s.experiment.default_objective.metric for s in subjects}
    parts = [over_seeds(rows, metric or defaults[data]) for data, rows in frame.groupby("data", sort=False)]
    return pd.concat(parts, ignore_index=True)


def pareto_front(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which points are such that no other is at most as costly and better, or cheaper and as good.

    costs, values: (n,), less is better for both. Returns a mask (n,).
    """
    no_worse = (costs[:, None] <= costs) & (values[:, None] <= values)
    better = (costs[:, None] < costs) | (values[:, None] < values)
    dominated: np.ndarray = np.any(no_worse & better, axis=0)
    return ~dominated
