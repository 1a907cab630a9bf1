"""What a study costs beside its training.

throughput   steps per second of a trial inside a study against the same experiment trained alone, with
             the same number of threads, an interval each in turns; the ratio's median
trials       a study of many trivial trials: CPU time of the driver's process, and wall time, per trial,
             of each hundred, so that growth shows
sharing      seconds of a study whose trials differ in inference-only keys, so that they share one training,
             against those of the training alone and of as many evaluations; of an EDM on MNIST

    python -m benchmarks.overhead throughput --repeats 5
    python -m benchmarks.overhead trials --trials 500 --sampler tpe random
    python -m benchmarks.overhead sharing --trials 40
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.experiments import shipped
from benchmarks.machine import RESULTS
from benchmarks.table import markdown, origin
from gpm_tune.documents import Document
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.accounts.trial_manager import TrialManager, TrialSpec
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import StudyConfig, load_study
from gpm_tune.study.running.progress import StudyProgress
from gpm_tune.study.running.run import run_study
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment, Trainer

BLOCK = 100  # trials whose mean makes a row
THROUGHPUT_GOAL, DRIVER_GOAL, SHARING_GOAL = 0.97, 150.0, 1.1

# Discriminator Flow on points, as small as it gets.
POINTS = space.put(
    shipped("discr_flow_gaussians").model_dump(mode="json"),
    {"data.samples": 2000, "model.sampling_steps": 4, "model.eta": 5.0, "model.time_embedding.size": 8},
)
TRIVIAL = space.put(
    POINTS,
    {
        "model.discriminator": {"name": "mlp", "width": 16, "depth": 2},
        "training": {"steps": 2, "batch_size": 16},
        "evaluation": {"every": 1, "nfe": [], "samples": 50},
    },
)
REAL = space.put(
    POINTS,
    {
        "model.discriminator": {"name": "mlp", "width": 128, "depth": 3},
        "training": {"steps": 10_000, "batch_size": 128},
        "evaluation": {"every": 500, "nfe": [2], "samples": 1000},
    },
)
IMAGES = space.put(
    shipped("edm").model_dump(mode="json"),
    {
        "model.denoiser.network.channels": 8,
        "model.sampling_steps": 6,
        "training": {"steps": 1500, "batch_size": 64},
        "evaluation": {"every": 1500, "samples": 500, "features": "small", "nfe": []},
    },
)
SEARCH = {
    "model.eta": {"float": [1.0, 20.0], "log": True},
    "model.loss": {"choice": ["ipm", "vanilla"]},
    "training.optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
}


def study_of(name: str, experiment: dict[str, Any], trials: int, **changes: Any) -> StudyConfig:
    """A study of an experiment on points, a trial at a time."""
    data = {"name": name, "experiment": experiment, "search": SEARCH, "budget": {"trials": trials}}
    resources = {"cpu": 1, "concurrent": 1}
    return load_study(Document("overhead", {**data, "resources": resources, **changes}, {}))


def run_quietly(study: StudyConfig, home: Home, address: str = "local") -> None:
    """Run a study to its end; its lines go nowhere."""
    with Path(os.devnull).open("w") as nowhere:
        assert run_study(study, home, address, Console(file=nowhere))


def throughput(repeats: int) -> list[dict[str, float]]:
    """A row per study: the median, over intervals, of a trial's pace relative to that of training alone."""
    rows = []
    for _ in range(repeats):
        pairs = in_turns(study_of("throughput", REAL, 1))
        ratios = [inside / outside for inside, outside in pairs]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "study": statistics.median(inside for inside, _ in pairs),
                "alone": statistics.median(outside for _, outside in pairs),
                "ratio": median,
                "lower quartile": low,
                "upper quartile": high,
                "intervals": len(pairs),
            }
        )
        print(rows[-1], flush=True)
    return rows


def in_turns(study: StudyConfig) -> list[tuple[float, float]]:
    """Steps per second of a trial and of its experiment alone, interval by interval in turns.

    While training alone takes its turn the trial waits for the driver, and the other way round: what
    slows this machine for longer than an interval slows both. Intervals hold an evaluation and a checkpoint.
    """
    every = study.experiment.evaluation.every
    pairs: list[tuple[float, float]] = []
    released: list[float] = []
    with Alone(study.experiment) as alone, tempfile.TemporaryDirectory() as folder:

        class Turns(StudyProgress):
            def measured(self, number: int, step: int, metrics: Any) -> None:
                arrived = time.perf_counter()
                super().measured(number, step, metrics)
                outside = alone.interval()
                if released:  # the first interval builds the trainer
                    pairs.append((every / (arrived - released[-1]), every / outside))
                released.append(time.perf_counter())

        import gpm_tune.study.running.run as module

        before, module.StudyProgress = module.StudyProgress, Turns  # type: ignore[misc]
        try:
            run_quietly(study, Home(Path(folder), None))
        finally:
            module.StudyProgress = before  # type: ignore[misc]
    return pairs


class Alone:
    """An experiment in a process of its own, trained an interval at a time; use as a context manager."""

    def __init__(self, experiment: Experiment) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=train_alone, args=(experiment, there), daemon=True)

    def __enter__(self) -> Alone:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def interval(self) -> float:
        """Seconds of the next interval, its evaluation and checkpoint included."""
        self._here.send("go on")
        seconds: float = self._here.recv()
        return seconds


def train_alone(experiment: Experiment, driver: Connection) -> None:
    """Answer each message with the seconds that an interval took."""
    torch.set_num_threads(1)
    trainer = Trainer(experiment)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            driver.recv()
            started = time.perf_counter()
            trainer.run_interval()
            trainer.save(Path(folder) / "checkpoint")
            driver.send(time.perf_counter() - started)


class Meter:
    """Takes the driver's clocks whenever a trial is handed out or ends."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.asking = 0.0
        self.asked: list[float] = []

    def watch(self) -> None:
        """Look on at the trial manager and the progress of this process's next study."""
        assign, ended = TrialManager.next, StudyProgress.ended

        def timed_next(manager: TrialManager, places: int = 1) -> TrialSpec | None:
            start = time.process_time()
            try:
                return assign(manager, places)
            finally:
                self.asked.append(time.process_time() - start)

        def timed_end(progress: StudyProgress, number: int, state: str, reason: str | None) -> None:
            ended(progress, number, state, reason)
            self.ends.append((time.process_time(), time.perf_counter()))

        TrialManager.next, StudyProgress.ended = timed_next, timed_end  # type: ignore[method-assign]


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


def sharing(trials: int) -> list[dict[str, Any]]:
    """A row: seconds of the training, of the evaluations, and of the study that shares the training."""
    search = {"model.sampling_noise.rho": {"float": [1.0, 12.0]}}
    study = study_of("sharing", IMAGES, trials, search=search)
    trainer = Trainer(study.experiment)
    started = time.perf_counter()
    trainer.train_until(study.experiment.training.steps)
    trained = time.perf_counter()
    trainer.run_interval()
    evaluated = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_quietly(study, Home(Path(folder), None))
    training, evaluations = trained - started, trials * (evaluated - trained)
    whole = time.perf_counter() - evaluated
    ratio = whole / (training + evaluations)
    return [{"training": training, "evaluations": evaluations, "study": whole, "ratio": ratio}]


def write(found: dict[str, Any], what: str, rows: list[dict[str, Any]], summary: str) -> None:
    """Print the table, and keep it as JSON and Markdown; found: when, how and where."""
    record = {"what": what, **found, "rows": rows, "summary": summary}
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    text = markdown(f"Overhead: {what}", record, list(rows[0]), cells, summary)
    (RESULTS / f"overhead_{what}.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / f"overhead_{what}.md").write_text(text)
    print(text)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["throughput", "trials", "sharing"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--sampler", nargs="+", default=["tpe", "random"])
    parser.add_argument("--concurrent", type=int, default=1)
    arguments = parser.parse_args()
    found = origin("overhead")
    if arguments.what == "throughput":
        rows = throughput(arguments.repeats)
        ratio = statistics.median(row["ratio"] for row in rows)
        write(
            found,
            "throughput",
            rows,
            f"Steps per second; an interval is {REAL['evaluation']['every']} steps, an evaluation and a "
            f"checkpoint. Median ratio of the studies {ratio:.3f}; goal {THROUGHPUT_GOAL}.",
        )
        return
    if arguments.what == "sharing":
        rows = sharing(arguments.trials)
        write(
            found,
            "sharing",
            rows,
            f"Seconds, for {arguments.trials} trials, one at a time, the start of Ray and the loading of "
            f"data included. Goal: ratio <= {SHARING_GOAL:g}.",
        )
        return
    rows = []
    for sampler in arguments.sampler:  # each in a process of its own would start from the same memory
        rows += many_trials(arguments.trials, sampler, arguments.concurrent)
    write(
        found,
        "trials",
        rows,
        "Milliseconds per trial: `driver` is CPU time of the driver's process (Tune, Optuna, tracking), "
        f"`asking` the part of it that Optuna takes to draw values. Goal: driver <= {DRIVER_GOAL:g}, flat.",
    )


if __name__ == "__main__":
    main()
