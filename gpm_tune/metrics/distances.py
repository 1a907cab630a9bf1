"""Distances between points, exact for those that are close."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1000  # rows of a distance matrix that are in memory at once
FEW_DIMENSIONS = 64  # with more, a matrix product is several times as fast as all differences
ROUNDING = 1e-8  # relative, more than that of distances
CLOSE = 1e-6  # squared distance, in squared lengths, below which a matrix product has lost too many digits


def pairwise_distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i - y_j‖, (n, m), of x (n, D) and y (m, D): exact for points that are close, 0 for equal ones.

    In many dimensions in double precision, by ‖x‖² + ‖y‖² - 2 x·y where that keeps its digits.
    """
    if x.shape[1] > FEW_DIMENSIONS:
        x, y = x.double(), y.double()
        lengths = x.square().sum(1)[:, None] + y.square().sum(1)
        squares = lengths.addmm(x, y.T, alpha=-2)
        i, j = (squares <= CLOSE * lengths).nonzero(as_tuple=True)
        if len(i) <= 10 * len(x):
            squares[i, j] = (x[i] - y[j]).square().sum(1)
            return squares.sqrt()
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def neighbour_distances(x: Tensor, k: int) -> Tensor:
    """The distance (n,) of each of x (n, D) from its k-th neighbour, which is within whatever is rounded.

    n has to be more than k.
    """
    chunks = [pairwise_distances(part, x).kthvalue(k + 1).values for part in x.split(CHUNK)]
    return torch.cat(chunks) * (1 + ROUNDING)
