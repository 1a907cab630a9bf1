"""FID against its feature network alone, and its matrix square root against torchmetrics'.

    python -m benchmarks.fid --images 200 --repeats 3

Inception's weights are random, which changes no time. The evaluations of the network alone take batches
in the form that it is given; the evaluation of FID takes images as models generate them. Times are for
10,000 images: features from the images measured, the distance as it is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.machine import clock
from benchmarks.table import Row, Table
from gpm_tune.metrics.features import FeatureExtractor
from gpm_tune.metrics.frechet import FrechetDistance, fit_gaussian
from gpm_tune.training.machine import keep_freed_memory

FULL = 10_000
LOADING = "torch_fidelity.feature_extractor_base.FeatureExtractorBase.load_state_dict"


def extractor(features: str, device: str) -> FeatureExtractor:
    """The feature network of that name; Inception with the weights that it starts from."""
    if features == "small":
        return FeatureExtractor("small", None, device)
    with tempfile.TemporaryDirectory() as folder, patch(LOADING):
        weights = Path(folder) / "weights.pth"
        torch.save({}, weights)
        return FeatureExtractor(features, weights, device)


def measure(features: str, images: int, repeats: int, device: str) -> Row:
    """Features of images and the distance of 10,000, against the feature network alone."""
    extract = extractor(features, device)
    samples = torch.rand(images, 1, 32, 32) * 2 - 1
    batches = list(extract.batches(samples))

    @torch.no_grad()
    def network() -> None:
        for batch in batches:
            extract.network(batch)

    def both() -> tuple[float, float]:
        return clock(network, device), clock(lambda: extract(samples), device)

    both()
    turns = [both() for _ in range(repeats)]
    width = extract(samples[:2]).shape[1]
    reference, generated = (torch.randn(FULL, width, device=device).double() for _ in range(2))
    distance = FrechetDistance(fit_gaussian(reference))
    root = statistics.median(clock(lambda: distance(generated), device) for _ in range(repeats))
    scale = FULL / images
    plain, ours = (statistics.median(turn[i] for turn in turns) * scale for i in (0, 1))
    ratio = statistics.median((own * scale + root) / (bare * scale) for bare, own in turns)
    return Row(
        f"FID of {FULL:,}, {features}",
        plain,
        ours + root,
        ratio,
        "≤ 1.11",
        f"{1 / ratio:.2f} of the network's own rate; the distance takes {root:.2g} s of it",
    )


def roots(device: str, width: int = 2048) -> Row:
    """The distance of features, as torchmetrics computes it and as we do, once, the reference prepared."""
    from torchmetrics.image.fid import _compute_fid

    real, generated = (torch.randn(FULL, width, device=device).double() for _ in range(2))

    prepared = real.mean(0), torch.cov(real.T)

    def theirs() -> Tensor:
        return _compute_fid(*prepared, generated.mean(0), torch.cov(generated.T))

    distance = FrechetDistance(fit_gaussian(real))
    plain, own = clock(theirs, device), clock(lambda: distance(generated), device)
    return Row(f"Fréchet distance, {width} features", plain, own, own / plain, "", "baseline: torchmetrics")


def main() -> None:
    """Measure both feature networks, and the distance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="for Inception; ten times as many for small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    keep_freed_memory()
    device = arguments.device
    table = Table("fid", device)
    table.add(measure("small", 10 * arguments.images, arguments.repeats, device))
    table.add(measure("inception", arguments.images, arguments.repeats, device))
    table.add(roots(device))


if __name__ == "__main__":
    main()
