"""Table 3: models by data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures
from gpm_tune.analysis.quality import RESAMPLES, measure, points_of, refuse_different
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.analysis.tables import latex, markdown, quality_table
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written
from gpm_tune.training.machine import choose_device
from gpm_tune.training.sweep import Conditions


def main(
    runs: common.RunsArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write: OUTPUT.csv, OUTPUT.md and OUTPUT.tex.")
    ] = Path("table"),
    metric: Annotated[str | None, typer.Option(help="fid, kid, … (default: the data's first).")] = None,
    split: common.SplitOption = "test",
    samples: common.SamplesOption = None,
    resamples: common.ResamplesOption = RESAMPLES,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
) -> None:
    """Table 3: models by data sets: test FID, or distances of points, each sampled as its experiment says.

    Runs that differ in nothing but their seed are one cell: mean ± standard deviation. The ± of a single
    seed is the standard error over samples. The CSV has every run.

        python analysis/table.py edm "gan/*" discr_flow score_gan.confirm/* -o table3
    """
    output = figures.check_output(output)
    place = common.home_at(home)
    subjects = find_subjects(place, runs, replicates=True)
    for data in {subject.experiment.data_label: None for subject in subjects}:
        refuse_different([subject for subject in subjects if subject.experiment.data_label == data], samples)
    conditions = Conditions(split, samples, seed, resamples, (metric,) if metric else ())
    frame = measure(subjects, place, conditions, choose_device(device))
    table = quality_table(points_of(frame, subjects, metric))
    files = [output.with_name(f"{output.name}.{ending}") for ending in ("csv", "md", "tex")]
    frame.to_csv(files[0], index=False)
    files[1].write_text(markdown(table))
    files[2].write_text(latex(table))
    written(files, markdown(table))


if __name__ == "__main__":
    script(main)
