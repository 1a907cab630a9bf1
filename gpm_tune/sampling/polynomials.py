"""Integrals of the polynomial through known values: the weights of multistep and exponential solvers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POSITIONS, WEIGHTS = np.polynomial.legendre.leggauss(20)  # exact to rounding for steps of e^10 in σ


def integral_weights(
    nodes: Sequence[float], start: float, end: float, *, exponential: bool = False
) -> list[float]:
    """w_j with Σ_j w_j p(τ_j) = ∫ k(τ) p(τ) dτ from start to end, for polynomials p below degree len(nodes).

    nodes: the τ_j, different ones. exponential: whether k(τ) = exp(τ - end), as in variation of constants;
    else k = 1, as for Adams's methods.
    """
    τ = start + (end - start) * (POSITIONS + 1) / 2
    measure = WEIGHTS * (end - start) / 2 * (np.exp(τ - end) if exponential else 1.0)
    weights = []
    for j, node in enumerate(nodes):
        others = np.array([other for i, other in enumerate(nodes) if i != j])
        basis = np.prod((τ[:, None] - others) / (node - others), axis=1)  # Lagrange's
        weights.append(float(measure @ basis))
    return weights
