"""Parameters of single layers, to add up a network's from its description."""

from __future__ import annotations

from torch import nn


def parameters(network: nn.Module) -> int:
    """All that is trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> int:
    return inputs * outputs * kernel**2 + bias * outputs


def normed(inputs: int, outputs: int, kernel: int) -> int:
    """A convolution that a batch norm follows: no bias, scales and shifts."""
    return conv(inputs, outputs, kernel, bias=False) + 2 * outputs


def modulation(embedding: int, *outputs: int) -> int:
    """The MLP of the time, and the affine maps of the convolutions with these output channels."""
    time = 2 * embedding
    mlp = linear(embedding, time) + linear(time, time)
    return mlp + sum(linear(time, 2 * channels) for channels in outputs)
