"""A sweep over NFE against the naive loop, which simulates and measures every NFE for itself.

A Discriminator Flow with 32 sampling steps on digits is measured after each of them: the sweep looks
at one simulation 32 times; the loop makes 32, each as far as its NFE, and sets up the real samples'
statistics each time from cached features. The values must be equal. EDM, whose NFE take grids of their
own, shares no simulation, only the set-up.

    python -m benchmarks.nfe_sweep --samples 200 --repeats 3
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.sweep import Conditions, Measurement, evaluate

STEPS = 32
DATA: dict[str, Any] = {
    "data": {"name": "digits"},
    "training": {"steps": 1, "batch_size": 4},
    "evaluation": {"samples": 10, "features": "small"},
}
MODELS: dict[str, dict[str, Any]] = {
    "discr_flow": {
        "name": "discr_flow",
        "sampling_steps": STEPS,
        "discriminator": {"name": "dcgan", "width": 16},
    },
    "edm": {
        "name": "edm",
        "denoiser": {
            "noise_embedding": {"name": "positional", "size": 16},
            "network": {"name": "unet", "channels": 8, "channel_mult": [1, 2], "blocks": 1},
        },
        "solver": {"name": "euler"},
        "sampling_steps": STEPS,
    },
}


def measure(saved: SavedModel, cache: Path, nfe: list[int], samples: int) -> list[Measurement]:
    """As `gpm-tune evaluate` does."""
    conditions = Conditions("validation", samples, 0, 0)
    return evaluate(saved, nfe=nfe, solvers=(), conditions=conditions, cache=cache, device="cpu")


def seconds(
    saved: SavedModel, groups: list[list[int]], samples: int, real: Path
) -> tuple[float, list[float]]:
    """Of measuring NFE group by group, with nothing kept but the real features; and the FIDs."""
    found: list[Measurement] = []
    started = time.perf_counter()
    for group in groups:
        shutil.rmtree(real / "measurements", ignore_errors=True)
        found += measure(saved, real, group, samples)
    return time.perf_counter() - started, [measurement.metrics["fid"] for measurement in found]


def main() -> None:
    """Print a row per model: seconds of both, alternating, and the median of their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every = list(range(1, STEPS + 1))
    print("| model | naive loop, s | sweep, s | loop / sweep |\n| --- | --- | --- | --- |")
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            trainer = Trainer(Experiment.model_validate({**DATA, "model": model}))
            trainer.run_interval()
            trainer.save(Path(folder) / "run")
            saved = SavedModel.at(Path(folder) / "run")
            measure(saved, cache, [1], arguments.samples)  # fills the cache of real features
            pairs = []
            for _ in range(arguments.repeats):
                loop, alone = seconds(saved, [[n] for n in every], arguments.samples, cache)
                sweep, together = seconds(saved, [every], arguments.samples, cache)
                assert together == alone, "the sweep changes values"
                pairs.append((loop, sweep))
        loops, sweeps = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(loop / sweep for loop, sweep in pairs)
        print(f"| {name} | {loops:.1f} | {sweeps:.1f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
