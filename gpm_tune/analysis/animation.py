"""Animations: a file of what a figure shows at one moment after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gpm_tune.analysis.figures import STYLE
from gpm_tune.errors import UserError

ENDINGS = (".gif", ".webp")
FRAMES = 100  # at most
SECONDS = 6.0  # of an animation, before it rests
SLOWEST, REST = 500, 2000  # milliseconds: a frame at most, and the last one

Moment = TypeVar("Moment")


def write_animation(
    figure: Figure, show: Callable[[Moment], None], moments: Iterable[Moment], file: Path
) -> None:
    """Write a frame per moment. show: draws one into the figure."""
    canvas, frames = FigureCanvasAgg(figure), []
    with rc_context(STYLE):
        for moment in moments:
            show(moment)
            canvas.draw()
            figure.set_layout_engine("none")  # the first frame's, so that nothing trembles
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    pace = min(SLOWEST, round(1000 * SECONDS / len(frames)))
    durations = [pace] * (len(frames) - 1) + [REST]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def check_animation(file: Path) -> None:
    """Raise UserError unless an animation can be written there."""
    if file.suffix not in ENDINGS:
        raise UserError(f"--animate {file}: expected a name that ends in {' or '.join(ENDINGS)}")
    if not file.parent.is_dir():
        raise UserError(f"--animate {file}: there is no folder {file.parent}")
