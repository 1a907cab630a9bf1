"""Pictures of samples, as PNG bytes."""

from __future__ import annotations

from io import BytesIO

from torch import Tensor

UPSCALED_TO = 64  # small images are enlarged to about this side, so that a person sees them


def picture(samples: Tensor, columns: int = 8) -> bytes:
    """A grid of images (n, C, H, W) in [-1, 1] with so many columns, or a scatter plot of points (n, 2)."""
    return _grid(samples, columns) if samples.dim() == 4 else _scatter(samples)


def _grid(images: Tensor, columns: int) -> bytes:
    from torchvision.utils import save_image

    enlarged = max(1, UPSCALED_TO // images.shape[-1])
    images = images.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    file = BytesIO()
    save_image(tile(images, columns), file, format="png")
    return file.getvalue()


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (n, C, H, W), clamped to [-1, 1], as one (3, height, width) in [0, 1] with so many columns."""
    from torchvision.utils import make_grid

    gap = max(1, images.shape[-1] // 24)
    grid: Tensor = make_grid(images.clamp(-1, 1) / 2 + 0.5, nrow=columns, padding=gap, pad_value=0.5)
    return grid


def _scatter(points: Tensor) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no global state, usable in any thread

    figure = Figure(figsize=(4, 4))
    axes = figure.add_subplot(aspect="equal")
    axes.scatter(points[:, 0], points[:, 1], s=6)
    axes.set(xlim=(-5, 5), ylim=(-5, 5))
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
