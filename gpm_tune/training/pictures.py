"""Pictures of samples, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from torch import Tensor

UPSCALED_TO = 64  # small images are enlarged to about this side, so that a person sees them
MOST_IMAGES = 1000  # in a grid
MOST_PIXELS = 2**24  # of them together
MARGIN = 0.2  # around points, of their extent
PIXELS, BORDER = 440, 60  # of a picture of points, and of the frame in it
RADIUS = 2  # pixels
POINT = "#1f77b4"


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
    """Drawn without matplotlib: its figures look at modules that MLflow's thread may be importing."""
    from PIL import Image, ImageDraw, ImageFont

    low, high = frame(real)
    scale = (PIXELS - 2 * BORDER) / (high - low).max()  # the same for both axes
    width, height = ((high - low) * scale).tolist()
    left, top = (PIXELS - width) / 2, (PIXELS - height) / 2
    right, bottom = left + width, top + height
    image = Image.new("RGB", (PIXELS, PIXELS), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12)
    draw.rectangle((left, top, right, bottom), outline="black")
    inside = ((points >= low) & (points <= high)).all(1)
    for x, y in ((points[inside] - low) * scale).round().tolist():
        draw.circle((left + x, bottom - y), RADIUS, fill=POINT)
    numbers = [f"{number:.4g}" for number in (*low.tolist(), *high.tolist())]
    places = [
        ("la", left, bottom + 4),
        ("rs", left - 4, bottom),
        ("ra", right, bottom + 4),
        ("rt", left - 4, top),
    ]
    for number, (anchor, x, y) in zip(numbers, places, strict=True):
        draw.text((x, y), number, "black", font, anchor=anchor)
    outside = int((~inside).sum())
    if outside:
        title = f"{outside} of {len(points)} points are outside"
        draw.text((PIXELS / 2, BORDER / 2), title, "black", font, anchor="ms")
    file = BytesIO()
    image.save(file, format="png")
    return file.getvalue()
