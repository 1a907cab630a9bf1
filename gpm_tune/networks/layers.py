"""The convolutional layer that the image networks share, with the modulation by time of appendix D.2."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, interpolate

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class TimeMLP(nn.Sequential):
    """The one MLP per conditioned network: embedding -> width, SiLU, width -> width, SiLU."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__(nn.Linear(embedding, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


class Conv(nn.Module):
    """A convolution, its norm if it has one, and its modulation where the network is told the time.

    With time features the output y becomes (1 + scale)·y + shift, both linear in the features.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        norm: bool = False,
        bias: bool | None = None,
        transposed: bool = False,
        time: int = 0,
    ) -> None:
        """bias: None for the rule, which is a bias unless a norm follows. time: features, 0 for none."""
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        bias = not norm if bias is None else bias
        self.convolution = kind(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)
        self.norm = nn.BatchNorm2d(outputs) if norm else None
        self.affine = nn.Linear(time, 2 * outputs) if time else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:  # (B, C, H, W), (B, F)
        y: Tensor = self.convolution(x)
        if self.norm is not None:
            y = self.norm(y)
        if self.affine is not None:
            scale, shift = self.affine(time)[:, :, None, None].chunk(2, dim=1)
            y = torch.addcmul(shift, 1 + scale, y)
        return y


class Dropout(nn.Module):
    """Drops features with a probability p in training, and scales the others by 1/(1 - p).

    PyTorch draws a mask's elements one after another on most CPUs. Here four of them come from each random
    number of 64 bits, with 16 bits each: p is met to 2^-16.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return dropout(x, self.p, self.training)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        like = torch.empty_like(x, dtype=torch.int16)  # in the memory format of x
        draws = bits.view(torch.int16)[: x.numel()].as_strided(like.shape, like.stride())
        kept = draws >= int(self.p * 2**16) - 2**15
        return torch.where(kept, x * (1 / (1 - self.p)), 0.0)


class Modulation(nn.Module):
    """Time features from an embedding of time: twice its size, or none for a network without time."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.features = 2 * embedding
        self.mlp = TimeMLP(embedding, self.features) if embedding else None

    def forward(self, embedding: Tensor | None) -> Tensor | None:  # (B, E) -> (B, 2E)
        return None if self.mlp is None else self.mlp(embedding)


def upsample(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, 2H, 2W)
    """Twice the side, by repeating pixels."""
    return interpolate(x, scale_factor=2, mode="nearest")


def check_images(name: str, shape: tuple[int, ...], sides: tuple[int, ...]) -> None:
    """Raise ValueError unless samples of this shape are square images of a side that a network has."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in sides:
        valid = ", ".join(f"{side}x{side}" for side in sides)
        raise ValueError(
            f"network '{name}' takes images of {valid}, the data has the shape {shape}; "
            "for points choose 'mlp'"
        )
