"""DPM-Solver-2: the midpoint method in log-SNR."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gpm_tune.sampling.integration import Field, Interval, Memory, Solver


class DPM2Config(Solver):
    """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, Algorithm 1): the slope half-way in log-SNR."""

    name: Literal["dpm2"]

    def step(
        self, field: Field, x: Tensor, interval: Interval, memory: Memory, rng: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """x += field(x_s, s) Δσ with s = √(σ σ'); a step to σ = 0 has no half in log-SNR: it is Euler's."""
        slope = field(x, interval.before)
        if interval.after > 0:
            middle = math.sqrt(interval.before * interval.after)
            slope = field(x + (middle - interval.before) * slope, middle)
        return x + interval.length * slope, ()
