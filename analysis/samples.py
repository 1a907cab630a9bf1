"""Figures 2, 3 and 4: uncurated samples, and how they cover the modes of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures
from gpm_tune.analysis.coverage import coverage_figure, find_modes
from gpm_tune.analysis.pictures import load_shown, samples_figure
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written
from gpm_tune.training.machine import choose_device
from gpm_tune.training.sweep import check_split


def main(
    runs: common.RunsArgument,
    output: common.FigureOption = Path("samples"),
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Samples shown (default: 64 images, or 1,000 points).")
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="Images side by side.")] = 8,
    coverage: Annotated[
        bool, typer.Option(help="Also count samples by mode: OUTPUT_modes.csv, .png and .svg.")
    ] = True,
    counted: Annotated[int, typer.Option(min=1, help="Samples that are counted, per model.")] = 1000,
    split: common.SplitOption = "test",
    nfe: common.NFEOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
) -> None:
    """Figures 2, 3 and 4: uncurated samples of the same seed, a panel per model, and mode collapse.

    Coverage: the share of samples in each mode, against the real data of a split: digits by the bundled
    classifier, Gaussians by their distance; other data have no known modes. exp(entropy) of the shares
    is the effective number of modes. The classifier learnt MNIST, where 98.8 % of its answers are right
    (78 % on the data `digits`); it takes plain noise for an 8: look at the samples, too.

        python analysis/samples.py edm score_gan discr_flow gan -o figure2
        python analysis/samples.py NCSN=score_gan/0 EDM=score_gan/7 -o figure4
    """
    output = figures.check_output(output)
    check_split(split, ("validation", "test"))
    shown = load_shown(find_subjects(common.home_at(home), runs), nfe, choose_device(device))
    files = figures.write(*samples_figure(shown, n, columns, seed), output)
    modes = find_modes(shown) if coverage else None
    if modes is not None:
        figure, table = coverage_figure(shown, modes, counted, split, seed)
        files += figures.write(figure, table, output.with_name(f"{output.name}_modes"))
    written(files)


if __name__ == "__main__":
    script(main)
