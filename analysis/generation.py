"""Figure 1: the process of generation, in rows of pictures or animated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures
from gpm_tune.analysis.animation import check_animation
from gpm_tune.analysis.pictures import load_shown
from gpm_tune.analysis.process import animate, choose, first, free, process_figure, simulate
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written
from gpm_tune.training.machine import choose_device


def main(
    runs: common.RunsArgument,
    output: common.FigureOption = Path("generation"),
    particles: Annotated[
        int | None, typer.Option(min=1, help="Particles in the figure (default: 4 images, or 500 points).")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="A column every so many evaluations (default: at most 10 columns)."),
    ] = None,
    first_steps: Annotated[
        int | None,
        typer.Option(
            "--first",
            min=1,
            metavar="K",
            help="Further rows with the first K steps of Discriminator and kernel flows.",
        ),
    ] = None,
    animation: Annotated[
        Path | None,
        typer.Option(
            "--animate", metavar="FILE", help="Also animate 64 images, or 500 points: a .gif or a .webp."
        ),
    ] = None,
    nfe: common.NFEOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
) -> None:
    """Figure 1: the same particles from the prior to the samples, from left to right, by NFE.

    For models without generator; images are clamped to [-1, 1]. A Discriminator Flow's images are
    well-formed early, EDM's are noisy up to the end. In the animation all models have spent the same
    NFE at the same time.

        python analysis/generation.py edm discr_flow --first 9 --animate figure1.gif -o figure1
    """
    output = figures.check_output(output)
    if animation is not None:
        check_animation(animation)
    shown = free(load_shown(find_subjects(common.home_at(home), runs), nfe, choose_device(device)))
    processes = [simulate(each, particles, 4, seed) for each in shown]
    rows = [choose(process, every) for process in processes]
    if first_steps is not None:
        rows += first(processes, first_steps)
    files = figures.write(*process_figure(rows, seed), output)
    if animation is not None:
        animate([simulate(each, None, 64, seed) for each in shown], animation)
        files.append(animation)
    written(files)


if __name__ == "__main__":
    script(main)
