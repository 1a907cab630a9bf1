"""What a study's time goes into, measured: training steps, sampling and FID in one table.

python -m benchmarks                                      about half an hour on two cores
python -m benchmarks --repeats 1 --device cuda
"""

from __future__ import annotations

import argparse

from benchmarks import fid, sampling, train_step
from benchmarks.experiments import CASES
from benchmarks.machine import product_peak
from benchmarks.table import write
from gpm_tune.training.machine import keep_freed_memory


def main() -> None:
    """Measure everything, print the table, and keep it in benchmarks/results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    device, repeats = arguments.device, arguments.repeats
    peak = product_peak(device)
    rows = [row for case in CASES for row in train_step.measure(case, device, repeats, peak)]
    keep_freed_memory()
    rows += [sampling.measure(case, 200, repeats, device) for case in sampling.CASES]
    rows += [fid.measure("small", 5000, repeats, device), fid.measure("inception", 500, repeats, device)]
    rows.append(fid.roots(device))
    write("speed", device, peak, rows)


if __name__ == "__main__":
    main()
