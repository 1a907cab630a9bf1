"""What a study costs beside its training.

throughput   steps per second of a trial inside a study against the same experiment trained alone, one
             at a time and with the same number of threads; repeats alternate; the ratio's median
trials       a study of many trivial trials: CPU time of the driver's process, and wall time, per trial,
             of each hundred, so that growth shows

    python benchmarks/overhead.py throughput --repeats 5
    python benchmarks/overhead.py trials --trials 500 --sampler tpe random
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from gpm_tune.documents import Document
from gpm_tune.study.home import Home
from gpm_tune.study.ledger import Assignment, Ledger
from gpm_tune.study.progress import StudyProgress
from gpm_tune.study.records import read_study
from gpm_tune.study.run import run_study
from gpm_tune.study.specification import Study, load_study
from gpm_tune.training import Experiment, Trainer

Mark = tuple[int, float, float]  # step, clock, seconds of training
RESULTS = Path(__file__).parent / "results"
BLOCK = 100  # trials whose mean makes a row
THROUGHPUT_GOAL, DRIVER_GOAL = 0.97, 150.0

POINTS: dict[str, Any] = {
    "data": {"name": "gaussians", "samples": 2000},
    "model": {
        "name": "discr_flow",
        "loss": "vanilla",
        "sampling_steps": 4,
        "eta": 5.0,
        "gradient_penalty": None,
        "time_embedding": {"size": 8},
        "discriminator": {"name": "mlp", "width": 16, "depth": 2},
    },
}
TRIVIAL = {
    **POINTS,
    "training": {"steps": 2, "batch_size": 16},
    "evaluation": {"every": 1, "nfe": [], "samples": 50},
}
REAL = {
    **POINTS,
    "model": {**POINTS["model"], "discriminator": {"name": "mlp", "width": 128, "depth": 3}},
    "training": {"steps": 6000, "batch_size": 128},
    "evaluation": {"every": 1000, "nfe": [2], "samples": 1000},
}
SEARCH = {
    "model.eta": {"float": [1.0, 20.0], "log": True},
    "model.loss": {"choice": ["ipm", "vanilla"]},
    "training.optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
}


def study_of(name: str, experiment: dict[str, Any], trials: int, **changes: Any) -> Study:
    """A study of an experiment on points, a trial at a time."""
    data = {"name": name, "experiment": experiment, "search": SEARCH, "budget": {"trials": trials}}
    resources = {"cpu": 1, "concurrent": 1}
    return load_study(Document("overhead", {**data, "resources": resources, **changes}, {}))


def run_quietly(study: Study, home: Home) -> None:
    """Run a study to its end; its lines go nowhere."""
    with Path(os.devnull).open("w") as nowhere:
        assert run_study(study, home, "local", Console(file=nowhere))


def throughput(repeats: int) -> list[dict[str, float]]:
    """Rows with the steps per second of a trial and of training alone, and their ratio."""
    rows = []
    torch.set_num_threads(1)
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            home = Home(Path(folder), None)
            study = study_of("throughput", REAL, 1)
            before = alone(study.experiment) if repeat % 2 else None
            inside = in_a_study(study, home)
            outside = before or alone(study.experiment)
        rows.append(
            {
                "study": inside.rate,
                "alone": outside.rate,
                "ratio": inside.rate / outside.rate,
                "ratio in steps": inside.in_steps / outside.in_steps,
            }
        )
        print(rows[-1], flush=True)
    return rows


class Speed(NamedTuple):
    """Steps per second, of all the time and of the time within training steps alone."""

    rate: float
    in_steps: float


def in_a_study(study: Study, home: Home) -> Speed:
    """Between a trial's first evaluation and its last, checkpoints and reports included."""
    marks: list[Mark] = []

    class Watch(StudyProgress):
        def measured(self, number: int, step: int, metrics: Any) -> None:
            marks.append((step, time.perf_counter(), metrics["seconds"]))
            super().measured(number, step, metrics)

    import gpm_tune.study.run as module

    before, module.StudyProgress = module.StudyProgress, Watch  # type: ignore[misc]
    try:
        run_quietly(study, home)
    finally:
        module.StudyProgress = before  # type: ignore[misc]
    return rate(marks)


def alone(experiment: Experiment) -> Speed:
    """Of `Trainer` with checkpoints, between the same marks."""
    trainer = Trainer(experiment)
    marks: list[Mark] = []
    with tempfile.TemporaryDirectory() as folder:
        while not trainer.done:
            evaluation = trainer.run_interval()
            assert evaluation is not None
            marks.append((evaluation.step, time.perf_counter(), evaluation.metrics["seconds"]))
            trainer.save(Path(folder) / "checkpoint")
    return rate(marks)


def rate(marks: list[Mark]) -> Speed:
    """From the first mark to the last."""
    (first, start, trained), (last, end, trained_at_end) = marks[0], marks[-1]
    return Speed((last - first) / (end - start), (last - first) / (trained_at_end - trained))


class Meter:
    """Takes the driver's clocks whenever a trial is handed out or ends."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.asking = 0.0
        self.asked: list[float] = []

    def watch(self) -> None:
        """Look on at the ledger and the progress of this process's next study."""
        assign, ended = Ledger.next, StudyProgress.ended

        def timed_next(ledger: Ledger) -> Assignment | None:
            start = time.process_time()
            try:
                return assign(ledger)
            finally:
                self.asked.append(time.process_time() - start)

        def timed_end(progress: StudyProgress, number: int, state: str, reason: str | None) -> None:
            ended(progress, number, state, reason)
            self.ends.append((time.process_time(), time.perf_counter()))

        Ledger.next, StudyProgress.ended = timed_next, timed_end  # type: ignore[method-assign]


def many_trials(trials: int, sampler: str, concurrent: int) -> list[dict[str, Any]]:
    """Rows of each hundred trials: milliseconds per trial of the driver, of asking, and of wall time."""
    meter = Meter()
    meter.watch()
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), None)
        resources = {"cpu": 1, "concurrent": concurrent}
        study = study_of("many", TRIVIAL, trials, sampler={"name": sampler}, resources=resources)
        started = time.process_time(), time.perf_counter()
        run_quietly(study, home)
        whole = time.process_time() - started[0], time.perf_counter() - started[1]
        states = {trial.state for trial in read_study(home.optuna_uri, "many").trials}
    assert states == {"complete"}, states
    rows = []
    for first in range(0, trials - 1, BLOCK):
        last = min(first + BLOCK, trials) - 1
        count = last - first  # the first one of all brings the start of Ray and MLflow with it
        cpu, wall = (1e3 * (meter.ends[last][i] - meter.ends[first][i]) / count for i in (0, 1))
        asking = 1e3 * statistics.fmean(meter.asked[first : last + 1])
        rows.append(
            {
                "sampler": sampler,
                "trials": f"{first + 1}-{last + 1}",
                "driver": cpu,
                "asking": asking,
                "wall": wall,
            }
        )
    rows.append(
        {
            "sampler": sampler,
            "trials": "all, start and end included",
            "driver": 1e3 * whole[0] / trials,
            "asking": 1e3 * statistics.fmean(meter.asked),
            "wall": 1e3 * whole[1] / trials,
        }
    )
    return rows


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    packages = ("torch", "ray", "optuna", "mlflow")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def markdown(record: dict[str, Any]) -> str:
    """The record for people."""
    rows = record["rows"]
    lines = [f"# Overhead: {record['what']}", "", f"{record['date']}, `{record['command']}`", ""]
    lines += [", ".join(f"{key} {value}" for key, value in record["machine"].items()), ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    for row in rows:
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", record["summary"], ""])


def write(what: str, rows: list[dict[str, Any]], summary: str) -> None:
    """Print the table, and keep it as JSON and Markdown."""
    record = {
        "what": what,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/overhead.py", *sys.argv[1:]]),
        "machine": MACHINE,
        "rows": rows,
        "summary": summary,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"overhead_{what}.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / f"overhead_{what}.md").write_text(markdown(record))
    print(markdown(record))


MACHINE = machine()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["throughput", "trials"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--sampler", nargs="+", default=["tpe", "random"])
    parser.add_argument("--concurrent", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "throughput":
        rows = throughput(arguments.repeats)
        ratio = statistics.median(row["ratio"] for row in rows)
        write(
            "throughput",
            rows,
            f"Steps per second; an evaluation and a checkpoint every {REAL['evaluation']['every']} steps. "
            f"`ratio in steps` leaves these out: what is missing there other processes took. "
            f"Median ratio {ratio:.3f}; goal {THROUGHPUT_GOAL}.",
        )
        return
    rows = []
    for sampler in arguments.sampler:  # each in a process of its own would start from the same memory
        rows += many_trials(arguments.trials, sampler, arguments.concurrent)
    write(
        "trials",
        rows,
        "Milliseconds per trial: `driver` is CPU time of the driver's process (Tune, Optuna, tracking), "
        f"`asking` the part of it that Optuna takes to draw values. Goal: driver <= {DRIVER_GOAL:g}, flat.",
    )


if __name__ == "__main__":
    main()
