"""Interpolations between standard normal vectors (appendix C.3, after Leśniak et al. 2018).

Each takes ends a, b (B, D) and positions t (T,) in [0, 1], and gives (T, B, D). The Cauchy ones keep the
normal law along the way, of every coordinate or of the norm: a mixture of Cauchy variables is Cauchy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn.functional import normalize, one_hot

Interpolation = Callable[[Tensor, Tensor, Tensor], Tensor]
NEARLY_PARALLEL = 1e-9  # radians


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """(1 - t) a + t b."""
    return torch.lerp(a, b, t.to(a)[:, None, None])


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Along the great circle of the directions, with the norm interpolated linearly."""
    norms = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    return (linear(*norms, t) * _directions(a, b, t)).to(a)


def cauchy_linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Linear after each coordinate was mapped from a normal to a Cauchy variable."""
    x, y = (_to_cauchy(end.sign(), special.ndtr(-_double(end.abs()))) for end in (a, b))
    between = linear(x, y, t)
    sizes = -special.ndtri(_tail(between))
    return (between.sign() * torch.from_numpy(sizes)).to(a)


def spherical_cauchy_linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Along the great circle of the directions, with the norm linear as a Cauchy variable."""
    half = a.shape[1] / 2
    norms = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    ends = []
    for norm in norms:
        below, above = (f(half, _double(norm) ** 2 / 2) for f in (special.gammainc, special.gammaincc))
        side = torch.from_numpy(np.sign(below - above))
        ends.append(_to_cauchy(side, np.minimum(below, above)))
    between = linear(ends[0], ends[1], t)
    tail = _tail(between)
    squares = np.where(between.numpy() < 0, special.gammaincinv(half, tail), special.gammainccinv(half, tail))
    lengths = torch.from_numpy(np.sqrt(2 * squares)).to(a.device)
    return (lengths * _directions(a, b, t)).to(a)


INTERPOLATIONS: dict[str, Interpolation] = {
    "linear": linear,
    "spherical": spherical,
    "cauchy-linear": cauchy_linear,
    "spherical-cauchy-linear": spherical_cauchy_linear,
}


def _directions(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Unit vectors (T, B, D) on a great circle from the direction of a to that of b, in double precision."""
    a, b = normalize(a.double()), normalize(b.double())
    # Twice the arc tangent of the chords is exact for small and for wide angles alike.
    angle = 2 * torch.atan2((a - b).norm(dim=1, keepdim=True), (a + b).norm(dim=1, keepdim=True))
    arc = t.to(a)[:, None, None] * angle
    return arc.cos() * a + arc.sin() * _tangents(a, b)


def _tangents(a: Tensor, b: Tensor) -> Tensor:
    """Unit vectors (B, D) orthogonal to a, towards b; towards an axis where a and b are on one line."""
    axis = one_hot(a.abs().argmin(dim=1), a.shape[1]).to(a)
    on_one_line = _rejection(b, a).norm(dim=1, keepdim=True) < NEARLY_PARALLEL
    return normalize(_rejection(torch.where(on_one_line, axis, b), a))


def _rejection(x: Tensor, unit: Tensor) -> Tensor:
    """The part of x that is orthogonal to a unit vector; all (B, D)."""
    return x - (x * unit).sum(dim=1, keepdim=True) * unit


def _double(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.double().cpu().numpy()
    return array


def _to_cauchy(side: Tensor, tail: np.ndarray) -> Tensor:
    """The Cauchy variable on a side (-1, 0, 1) of zero beyond which lies this probability."""
    return side.double().cpu() * torch.from_numpy(1 / np.tan(np.pi * tail))


def _tail(cauchy: Tensor) -> np.ndarray:
    """The probability that lies beyond a Cauchy variable, on its side of zero."""
    tail: np.ndarray = (torch.atan(1 / cauchy.abs()) / torch.pi).numpy()
    return tail
