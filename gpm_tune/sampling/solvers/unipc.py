"""UniPC: an exponential multistep predictor, and a corrector that costs no further evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.sampling.integration import Field, Interval, Memory, Solver
from gpm_tune.sampling.polynomials import integral_weights


class UniPCConfig(Solver):
    """UniPC (Zhao et al. 2023, arXiv 2302.04867): one evaluation per step, which corrects the one before."""

    name: Literal["unipc"]
    order: int = Key(3, ge=1, le=3, description="Of the predictor; the corrector's is one higher.")
    corrector: bool = Key(True, description="Whether steps are corrected: UniPC, else UniP.")
    lower_order_at_end: bool = Key(
        True, description="Whether the last steps have lower orders, which is stabler for few of them."
    )

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """Correct the step that led here with the denoiser's value found here, then predict the next.

        The weights solve (5) exactly, for which B(h) does not matter.
        """
        denoised = x - interval.before * field(x, interval.before)
        if interval.after == 0:
            return denoised, ()
        start, *values = memory or (x,)
        if self.corrector and values:
            order = min(len(values), self._most(interval.left + 1))
            sigmas = interval.back(order + 1)
            x = _exponential_step(start, [denoised, *values[:order]], sigmas, sigmas[1], sigmas[0])
        known = (denoised, *values)[: self._most(interval.left)]
        sigmas = interval.back(len(known))
        moved = _exponential_step(x, known, sigmas, interval.before, interval.after)
        return moved, (x, denoised, *values)[: self.order + 1]

    def _most(self, left: int) -> int:
        """The highest order of a step after which, with itself, so many are left."""
        return min(self.order, left) if self.lower_order_at_end else self.order


def _exponential_step(
    x: Tensor, values: Sequence[Tensor], sigmas: Sequence[float], before: float, after: float
) -> Tensor:
    """From x at a noise level to another one, along the polynomial in λ through the denoiser's values."""
    levels = [-math.log(sigma) for sigma in sigmas]
    weights = integral_weights(levels, -math.log(before), -math.log(after), exponential=True)
    moved = after / before * x
    for weight, value in zip(weights, values, strict=True):
        moved = moved + weight * value
    return moved
