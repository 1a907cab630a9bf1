"""Every solver on every grid at few NFE, against the exact path, on a score that is known exactly.

    python -m benchmarks.few_step --seeds 0 1 2

The data are a kernel density: 1,000 images of MNIST under a Gaussian of bandwidth 0.15. Its denoiser is a
closed form, so that what is measured is the solver's error alone. FID (small features) of 500 samples against
10,000 draws from the density itself, mean over seeds of the noise, and their standard deviation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.machine import RESULTS
from benchmarks.table import markdown, origin
from gpm_tune.data import to_float
from gpm_tune.data.mnist import MNISTConfig
from gpm_tune.metrics import FeatureExtractor, Quality, Real
from gpm_tune.models import EDMConfig, FreeParticleModel, SamplingOptions
from gpm_tune.models.flow import per_sample
from gpm_tune.models.flows.score import DataScore, TrainingNoise
from gpm_tune.models.particle_model import NoiseLevels

IMAGES, BANDWIDTH, SAMPLES, REFERENCE = 1000, 0.15, 500, 10_000
NFE = (4, 5, 6, 8, 10, 15)
SOLVERS = {
    "euler": {"name": "euler"},
    "heun": {"name": "heun"},
    "dpm2": {"name": "dpm2"},
    **{f"ipndm-{order}": {"name": "ipndm", "order": order} for order in (2, 3, 4)},
    **{f"ab-{order}": {"name": "ab", "order": order} for order in (2, 3)},
    **{f"dpmpp-{order}": {"name": "dpmpp", "order": order} for order in (2, 3)},
    **{f"unipc-{order}": {"name": "unipc", "order": order} for order in (2, 3)},
}
GRIDS = {
    f"{name} to {end}": {"name": name, "end": end}
    for name in ("rho", "log_snr", "learned")
    for end in ("zero", "sigma_min")
}
GOALS = {5: 14.0, 10: 12.5}


class KernelDensity(nn.Module):
    """The denoiser of images (N, *shape) under a Gaussian: the mean of the posterior, exactly."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("squares", images.flatten(1).square().sum(1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[data | data + σn = x] of x (B, *shape)."""
        flat, noise = x.flatten(1), per_sample(sigma, x.flatten(1)).square()
        images = self.get_buffer("images")
        distances = flat.square().sum(1, keepdim=True) + self.get_buffer("squares") - 2 * flat @ images.T
        nearest = torch.softmax(-distances / (2 * (BANDWIDTH**2 + noise)), dim=1) @ images
        return ((BANDWIDTH**2 * flat + noise * nearest) / (BANDWIDTH**2 + noise)).view_as(x)


def model_of(density: KernelDensity, shape: tuple[int, ...], **keys: Any) -> FreeParticleModel:
    """An EDM with this denoiser."""
    config = EDMConfig.model_validate({"name": "edm", "sampling_steps": 100, **keys})
    schedule = NoiseLevels(config.sampling_noise, config.grid, config.analytic_first_step)
    flow = DataScore(density, TrainingNoise())  # type: ignore[arg-type]
    return FreeParticleModel(flow, schedule, config.solver, config.sampling_steps, shape)


def settings() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Solver, grid, and the keys of both."""
    for solver, options in SOLVERS.items():
        for grid, keys in GRIDS.items():
            yield solver, grid, {"solver": options, "grid": keys}
        first = {"grid": GRIDS["log_snr to sigma_min"], "analytic_first_step": True}
        yield solver, "log_snr to sigma_min, analytic first step", {"solver": options, **first}


def measure(seeds: list[int]) -> pd.DataFrame:
    """A row per solver, grid, NFE and seed, and of the exact path; printed as they come."""
    images = to_float(MNISTConfig(name="mnist").load(0).train[:IMAGES])
    rng = torch.Generator().manual_seed(1)
    drawn = images[torch.randint(IMAGES, (REFERENCE,), generator=rng)]
    reference = drawn + BANDWIDTH * torch.randn(drawn.shape, generator=rng)
    fid = Quality(["fid"], Real(reference, FeatureExtractor("small", None, "cpu")))
    density, shape = KernelDensity(images), tuple(images.shape[1:])
    exact = model_of(density, shape)
    noises = {seed: exact.noise(SAMPLES, torch.Generator().manual_seed(seed)) for seed in seeds}
    rows = []

    def add(solver: str, grid: str, model: FreeParticleModel, budget: int, steps: int) -> None:
        for seed, noise in noises.items():
            *_, end = model.process(noise, torch.Generator().manual_seed(seed), SamplingOptions(steps=steps))
            rows.append((solver, grid, budget, end.nfe, steps, seed, fid(end.x)["fid"]))
        print(*rows[-1], flush=True)

    add("exact path (heun, 100 steps)", "rho to zero", exact, exact.full_nfe(), exact.steps)
    for solver, grid, keys in settings():
        model = model_of(density, shape, **keys)
        for budget in NFE:
            if steps := model.longest_grid(budget):
                add(solver, grid, model, budget, steps)
    return pd.DataFrame(rows, columns=["solver", "grid", "budget", "nfe", "steps", "seed", "fid"])


def main() -> None:
    """Measure, print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found = origin("few_step")
    frame = measure(parser.parse_args().seeds)
    table = frame.groupby(["solver", "grid", "budget"], sort=False)["fid"].agg(["mean", "std"])
    rows = []
    for (solver, grid), part in table.groupby(["solver", "grid"], sort=False):
        by_nfe = part.droplevel(["solver", "grid"])
        budgets = by_nfe.index if len(by_nfe) == 1 else NFE
        cells = [
            f"{by_nfe['mean'][n]:.1f} ± {by_nfe['std'][n]:.1f}" if n in by_nfe.index else "" for n in budgets
        ]
        rows.append([solver, grid, *cells, *[""] * (len(NFE) - len(cells))])
    best = table["mean"].groupby("budget").min()
    goals = "; ".join(f"NFE {n}: {best[n]:.1f}, goal at most {goal:g}" for n, goal in GOALS.items())
    note = f"FID; a budget is met from below (Heun: NFE 3, 5, 5, 7, 9, 15). Best of all settings at {goals}."
    text = markdown("Few steps", found, ["solver", "grid", *map(str, NFE)], rows, note)
    (RESULTS / "few_step.md").write_text(text)
    (RESULTS / "few_step.json").write_text(json.dumps({**found, "rows": frame.to_dict("records")}) + "\n")
    print(text)


if __name__ == "__main__":
    main()
