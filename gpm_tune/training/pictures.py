"""Pictures of samples, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from torch import Tensor

UPSCALED_TO = 64  # small images are enlarged to about this side, so that a person sees them
MOST_IMAGES = 1000  # in a grid
MOST_PIXELS = 2**24  # of them together
MARGIN = 0.2  # around points, of their extent


def picture(samples: Tensor, columns: int = 8, real: Tensor | None = None) -> bytes:
    """A grid of images (n, C, H, W) in [-1, 1] with so many columns, or a scatter plot of points (n, 2).

    real: points of the data (m, 2), which set the frame; without them the samples do.
    """
    return (
        _grid(samples, columns)
        if samples.dim() == 4
        else _scatter(samples, samples if real is None else real)
    )


def _grid(images: Tensor, columns: int) -> bytes:
    from torchvision.utils import save_image

    enlarged = max(1, UPSCALED_TO // images.shape[-1])
    images = images.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    file = BytesIO()
    save_image(tile(images, columns), file, format="png")
    return file.getvalue()


def most_images(shape: Sequence[int]) -> int:
    """How many images (C, H, W) a picture shows at most."""
    return min(MOST_IMAGES, max(1, MOST_PIXELS // (shape[-2] * shape[-1])))


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (n, C, H, W), clamped to [-1, 1], as one (3, height, width) in [0, 1] with so many columns."""
    from torchvision.utils import make_grid

    gap = max(1, images.shape[-1] // 24)
    grid: Tensor = make_grid(images.clamp(-1, 1) / 2 + 0.5, nrow=columns, padding=gap, pad_value=0.5)
    return grid


def frame(points: Tensor) -> tuple[Tensor, Tensor]:
    """The lower left and the upper right corner (2,) of a picture that shows all points (n, 2)."""
    low, high = points.double().amin(0), points.double().amax(0)
    extent = (high - low).max()
    margin = MARGIN * extent if extent > 0 else 1.0
    return low - margin, high + margin


def _scatter(points: Tensor, real: Tensor) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no global state, usable in any thread

    low, high = frame(real)
    figure = Figure(figsize=(4, 4))
    axes = figure.add_subplot(aspect="equal")
    axes.scatter(points[:, 0], points[:, 1], s=6)
    axes.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
    outside = int(((points < low) | (points > high)).any(1).sum())
    if outside:
        axes.set_title(f"{outside} of {len(points)} points are outside", fontsize=8)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
