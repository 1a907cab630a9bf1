"""Figures 8 to 12: particles on the Gaussians, where their flow points, and what they descend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures, particles
from gpm_tune.analysis.animation import FRAMES, check_animation
from gpm_tune.analysis.particles import Spacing
from gpm_tune.analysis.particles_figure import animate, draw, table
from gpm_tune.analysis.retraining import find_origin
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written
from gpm_tune.training.machine import choose_device


def main(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|EXPERIMENT.yaml",
            help="STUDY (its best trial), STUDY/TRIAL, a training run or its folder, an MLflow run id, or "
            "a file.",
        ),
    ],
    output: common.FigureOption = Path("gaussians"),
    panels: Annotated[int, typer.Option(min=2, help="Panels, where --at does not name the steps.")] = 8,
    spacing: Annotated[
        Spacing | None,
        typer.Option(help="Of the panels (default: even over inference, geometric over training)."),
    ] = None,
    at: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Sampling steps, or training steps, that are shown (`--at 0 8 56`)."),
    ] = None,
    count: Annotated[int, typer.Option("--particles", min=1, help="Generated and real points shown.")] = 100,
    noise: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            metavar="SIGMA",
            help="Score GAN: particles with noise of this σ, and their direction in two parts (Figure 12).",
        ),
    ] = None,
    animation: Annotated[
        Path | None,
        typer.Option("--animate", metavar="FILE", help="Also write an animation, a .gif or a .webp."),
    ] = None,
    frames: Annotated[int, typer.Option(min=2, max=FRAMES, help="Of the animation, at most.")] = 60,
    seed: common.SeedOption = 0,
    overrides: common.SetOption = None,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
) -> None:
    """Figures 8 to 12: particles in the plane (dots), data (diamonds) and directions (arrows).

    Models without generator are shown over inference time, after sampling steps: EDM (Figure 8),
    Discriminator Flow (Figure 9), kernel flows. A run's best weights are taken; a file's experiment is
    trained first.

    Models with a generator are shown over training time: GAN (Figure 10), Score GAN (Figure 11, and 12 with
    --noise), kernel generators. Checkpoints keep the end of training only, so the run is trained again, from
    its experiment and seed, without evaluations; on the CPU that gives the same weights bit for bit. The
    latent noise is the same in all panels.

    Where there is a discriminator, the background is the pointwise generator loss, darker is lower,
    renormalised in each panel. Arrows are scaled in each panel; its title has the longest one's length.

        python analysis/gaussians.py discr_flow_gaussians --animate figure9.gif -o figure9

        python analysis/gaussians.py score_gan_gaussians.yaml --noise 0.5 -o figure12
    """
    output = figures.check_output(output)
    if animation is not None:
        check_animation(animation)
    place = common.home_at(home)
    scene = particles.new_scene(find_origin(place, run, overrides or []), count, seed, noise)
    shown = particles.check_steps(scene, at) if at else particles.choose(scene, panels, spacing)
    animated = particles.choose(scene, frames, "even") if animation else []
    steps = sorted({*shown, *animated})
    found = dict(zip(steps, particles.take(scene, steps, place, choose_device(device)), strict=True))
    stills = [found[step] for step in shown]
    files = figures.write(draw(scene, stills), table(scene, stills), output)
    if animation is not None:
        animate(scene, [found[step] for step in animated], animation)
        files.append(animation)
    written(files)


if __name__ == "__main__":
    script(main)
