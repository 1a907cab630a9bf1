"""What a study's driver costs with 1, 8, 64 and 256 trials at a time, and what bends first.

Real: the driver's process as `gpm-tune run` starts it (Tune, Optuna, tracking), Ray with placement groups
and remote calls, checkpoints in the storage, MLflow. Simulated: training (a pause, then what one real
trial measured and saved) and a process per trial (some processes hold many trials each). Nodes claim CPUs
that they do not have.

    python -m benchmarks.scaling                          all cases; half an hour
    python -m benchmarks.scaling --cases 64 256           some; the others' rows are kept

Costs are CPU seconds of processes and threads: they bear a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.overhead import run_quietly
from benchmarks.scaling.cases import CASES, EVALUATIONS, Case
from benchmarks.scaling.costs import Costs, Watch
from benchmarks.scaling.servers import bucket_server, mlflow_server, ray_of
from benchmarks.scaling.stand_ins import ActorClass, make_template
from benchmarks.table import markdown, origin
from gpm_tune.study.cluster.connection import RAY_SETTINGS
from gpm_tune.study.storage.home import Home


def measure(case: Case) -> dict[str, Any]:
    """Run a case in this process; its row of the table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-")))
        os.environ |= RAY_SETTINGS | {"RAY_TMPDIR": str(folder)}
        mlflow = stack.enter_context(mlflow_server(folder)) if case.server else None
        bucket = stack.enter_context(bucket_server(folder)) if case.bucket else None
        address = stack.enter_context(ray_of(case))
        actors = ActorClass(case, make_template(folder / "template", case.study.experiment))
        home = Home(folder / "home", mlflow and mlflow[0], "s3://scaling/runs" if bucket else None)
        costs = Costs(mlflow and mlflow[1])
        costs.watch()
        watch = Watch(actors, costs, bucket or Counter)
        watch.watch(enough=case.trials - case.at_a_time)
        actors.replace_all()
        started = time.perf_counter()
        run_quietly(case.study, home, address)
        last = time.perf_counter() - watch.moments[1]["wall"]
        return row(case, *watch.moments) | {
            "s until all ran": watch.moments[0]["wall"] - started,
            "s after the last": last,
        }


MAIN = ("asking", "telling", "touching")  # parts of the main thread's work; Tune is the rest
THREADS = ("delivery", "mirroring")  # that have a thread of their own
SERVERS = ("MLflow server", "GCS", "switch")
CALLS = ("Optuna commits", "MLflow", "PUT", "LIST", "GET", "DELETE")


def row(case: Case, first: dict[str, float], last: dict[str, float]) -> dict[str, Any]:
    """Costs per evaluation between two moments; ms are of CPU."""
    spent = {name: value - first.get(name, 0.0) for name, value in last.items()}
    results = spent["evaluations"]

    def ms(name: str) -> float:
        return 1e3 * spent.get(name, 0.0) / results

    found = {name: ms(name) for name in ("driver", *MAIN, *THREADS, *SERVERS)}
    found["Tune"] = ms("main") - sum(map(ms, MAIN))
    found["other threads"] = ms("driver") - ms("main") - sum(map(ms, THREADS))
    calls = {name: spent.get(f"{name} calls", spent.get(f"{name} requests", 0)) / results for name in CALLS}
    return {
        "case": asdict(case),
        "evaluations/s": results / spent["wall"],
        **{f"{name}, ms": value for name, value in found.items()},
        "ms per ask": 1e3 * spent["asking"] / spent["trials"],
        "driver, cores": spent["driver"] / spent["wall"],
        "driver, MB": last["MB"],
        **{f"{name} calls": value for name, value in calls.items()},
    }


COLUMNS = ["evaluations/s", "driver, ms", *(f"{n}, ms" for n in ("Tune", *MAIN, *THREADS, "other threads"))]
COLUMNS += ["ms per ask", "driver, cores", "driver, MB", *(f"{name}, ms" for name in SERVERS)]
COLUMNS += [*(f"{name} calls" for name in CALLS), "s until all ran"]
NOTE = f"""Per evaluation, but for columns that say otherwise; a trial has {EVALUATIONS} evaluations. ms:
milliseconds of CPU. The driver's are those from Tune to other threads: Tune and Ray in the main thread,
asking Optuna for values and telling it, touching what MLflow is to show, and two threads: delivery to
MLflow, mirroring to the bucket. Trials pause so that all together measure {Case(1).rate:g} times a second,
half as often with the bucket; or they do not pause, where the case says so."""


def write(record: dict[str, Any]) -> None:
    """Keep the record as JSON, and as a table for people."""
    (RESULTS / "scaling.json").write_text(json.dumps(record, indent=2) + "\n")
    rows = [
        [name, *(f"{found[key]:.3g}" if found.get(key) else "" for key in COLUMNS)]
        for name, found in record["cases"].items()
    ]
    text = markdown("Scaling: what the driver costs", record, ["at a time", *COLUMNS], rows, NOTE)
    (RESULTS / "scaling.md").write_text(text)


def main() -> None:
    """Measure what the command line asks for, each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--here", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(CASES[arguments.here])))
        return
    file = RESULTS / "scaling.json"
    kept = json.loads(file.read_text())["cases"] if file.exists() else {}
    for name in arguments.cases:
        command = [sys.executable, "-m", "benchmarks.scaling", "--here", name]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        kept[name] = json.loads(output.splitlines()[-1])
        print(name, json.dumps(kept[name]), flush=True)
        write(origin("scaling") | {"cases": {name: kept[name] for name in CASES if name in kept}})


if __name__ == "__main__":
    main()
