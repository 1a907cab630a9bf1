"""DPM-Solver++: exponential multistep methods for the denoiser, deterministic or stochastic."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field as Key
from torch import Tensor

from gpm_tune.sampling.integration import Field, Interval, Memory, Solver, randn_like
from gpm_tune.sampling.polynomials import integral_weights


class DPMppConfig(Solver):
    """DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095, Algorithm 2): 1S, 2M, 3M, and their SDE."""

    name: Literal["dpmpp"]
    order: int = Key(
        2,
        ge=1,
        le=3,
        description="1 for 1S, which is DDIM; 2 for 2M; 3 for 3M; the first steps have less.",
    )
    stochastic: float = Key(
        0.0, ge=0, le=1, description="Share of noise: 0 for the probability flow, 1 for SDE-DPM-Solver++."
    )
    lower_order_at_end: bool = Key(
        True, description="Whether the last steps have lower orders, which is stabler for few of them."
    )

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """x = e^{-h} x + Σ_j w_j D_j + σ' √(1 - e^{-2 share Δλ}) ε, with λ = -ln σ and h = (1 + share) Δλ."""
        denoised = x - interval.before * field(x, interval.before)
        if interval.after == 0:
            return denoised, ()
        known = (denoised, *memory)
        if self.lower_order_at_end:
            known = known[: interval.left]
        before, after = -math.log(interval.before), -math.log(interval.after)
        speed = 1 + self.stochastic
        levels = [-speed * math.log(sigma) for sigma in interval.back(len(known))]
        weights = _weights(levels, speed * after)
        moved = math.exp(speed * (before - after)) * x
        for weight, value in zip(weights, known, strict=True):
            moved = moved + weight * value
        if self.stochastic and not interval.is_last:
            variance = -math.expm1(2 * self.stochastic * (before - after))
            moved = moved + interval.after * math.sqrt(variance) * randn_like(x, rng)
        return moved, (denoised, *memory)[: self.order - 1]


def _weights(levels: list[float], end: float) -> list[float]:
    """Of the denoiser's values at levels of λ, latest first, in a step from the first of them to the end."""
    if len(levels) != 2:
        return integral_weights(levels, levels[0], end, exponential=True)
    h, h_before = end - levels[0], levels[0] - levels[1]
    whole, share = -math.expm1(-h), h / h_before / 2  # (1 - e^{-h})/2 is what 2M takes for the integral
    return [whole * (1 + share), -whole * share]
