"""Table 3: models by data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from gpm_tune.analysis import figures
from gpm_tune.analysis.quality import RESAMPLES, check_metric, measure, over_seeds, refuse_different
from gpm_tune.analysis.subjects import Subject, find_subjects
from gpm_tune.analysis.tables import latex, markdown, quality_table
from gpm_tune.cli import script
from gpm_tune.cli.common import (
    DeviceOption,
    HomeOption,
    ResamplesOption,
    RunsArgument,
    SamplesOption,
    SeedOption,
    SplitOption,
    home_at,
)
from gpm_tune.cli.output import written
from gpm_tune.training.machine import choose_device
from gpm_tune.training.sweep import Conditions


def main(
    runs: RunsArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write: OUTPUT.csv, OUTPUT.md and OUTPUT.tex.")
    ] = Path("table"),
    metric: Annotated[str | None, typer.Option(help="fid, kid, … (default: the data's first).")] = None,
    split: SplitOption = "test",
    samples: SamplesOption = None,
    resamples: ResamplesOption = RESAMPLES,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    home: HomeOption = None,
) -> None:
    """Table 3: models by data sets: test FID, or distances of points, each sampled as its experiment says.

    Runs that differ in nothing but their seed are one cell: mean ± standard deviation. The ± of a single
    seed is the standard error over samples. The CSV has every run.

        python analysis/table.py edm "gan/*" discr_flow score_gan.confirm/* -o table3
    """
    output = figures.check_output(output)
    place = home_at(home)
    subjects = find_subjects(place, runs, replicates=True)
    for data in {subject.experiment.data_label: None for subject in subjects}:
        refuse_different([subject for subject in subjects if subject.experiment.data_label == data], samples)
    conditions = Conditions(split, samples, seed, resamples)
    frame = measure(subjects, place, conditions, choose_device(device))
    table = quality_table(_points(frame, subjects, metric))
    files = [output.with_name(f"{output.name}.{ending}") for ending in ("csv", "md", "tex")]
    frame.to_csv(files[0], index=False)
    files[1].write_text(markdown(table))
    files[2].write_text(latex(table))
    written(files, markdown(table))


def _points(frame: pd.DataFrame, subjects: Sequence[Subject], metric: str | None) -> pd.DataFrame:
    """Of every data set its own metric, unless one is asked for."""
    defaults = {s.experiment.data_label: s.experiment.default_objective.metric for s in subjects}
    parts = []
    for data, rows in frame.groupby("data", sort=False):
        measured = rows.dropna(axis="columns", how="all")
        chosen = check_metric(metric, measured, defaults[data])
        parts.append(over_seeds(rows, chosen))
    return pd.concat(parts, ignore_index=True)


if __name__ == "__main__":
    script(main)
