"""What a study's time goes into, measured: training steps, sampling and FID in one table.

python -m benchmarks                   half an hour on two cores; the Score GAN's step takes 22 GB
python -m benchmarks --device cuda
"""

from __future__ import annotations

import argparse

from benchmarks import fid, sampling, train_step
from benchmarks.experiments import CASES
from benchmarks.table import Table
from gpm_tune.training.machine import keep_freed_memory

COUNTS = {"cpu": (64, 200), "cuda": (1000, 2000)}  # samples and images of which rates for 10,000 follow


def main() -> None:
    """Measure everything, print the table, and keep it in benchmarks/results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="of training steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    device, repeats = arguments.device, arguments.repeats
    samples, images = COUNTS[device]
    table = Table("speed", device)
    for case in arguments.cases:
        for row in train_step.measure(case, device, repeats, table.peak):
            table.add(row)
    keep_freed_memory()
    for case in sampling.CASES:
        table.add(sampling.measure(case, samples, repeats, device))
    table.add(fid.measure("small", 10 * images, repeats, device))
    table.add(fid.measure("inception", images, repeats, device))
    table.add(fid.roots(device))


if __name__ == "__main__":
    main()
