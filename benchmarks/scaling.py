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
import asyncio
import datetime
import functools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from rich.console import Console

from benchmarks.machine import RESULTS, machine
from benchmarks.overhead import PACKAGES, SEARCH, TRIVIAL
from gpm_tune.documents import Document
from gpm_tune.study.accounts.ledger import Ledger
from gpm_tune.study.cluster.connection import RAY_SETTINGS
from gpm_tune.study.definition.specification import Study, load_study
from gpm_tune.study.running.progress import StudyProgress
from gpm_tune.study.running.run import run_study
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.mirror import Mirror
from gpm_tune.study.tracking.tracker import RunLog, Tracker
from gpm_tune.training import Evaluation, Experiment, Trainer

EVALUATIONS = 4  # of a trial
PING_EVERY = 0.5  # seconds between a trial's looks at the switch
START = 5.0  # seconds that the process of a trial takes to start


@dataclass(frozen=True)
class Case:
    """What is run: how many trials at a time, in how many processes, at how many evaluations a second."""

    at_a_time: int
    processes: int = 8
    rate: float = 8.0  # 0: as fast as it goes
    nodes: int = 1  # of Ray, that share the trials
    server: bool = False  # track through an MLflow server
    bucket: bool = False  # keep checkpoints in a bucket of S3, as moto plays it
    evaluations: int = 800  # at least, while all trials run

    @property
    def trials(self) -> int:
        """In all: those that start, those that end, and between them what is measured."""
        return 2 * self.at_a_time + self.evaluations // EVALUATIONS

    @property
    def pause(self) -> float:
        """Seconds from one evaluation of a trial to the next."""
        return self.at_a_time / self.rate if self.rate else 0.0

    @property
    def study(self) -> Study:
        """A study whose trials measure and save as trivial ones do."""
        experiment = {**TRIVIAL, "training": {**TRIVIAL["training"], "steps": EVALUATIONS}}
        resources = {"cpu": 1, "concurrent": self.at_a_time}
        budget = {"trials": self.trials}
        data = {"name": "scaling", "experiment": experiment, "search": SEARCH}
        return load_study(Document("scaling", {**data, "budget": budget, "resources": resources}, {}))


CASES = {
    "1": Case(1, processes=1),
    "8": Case(8),
    "64": Case(64),
    "256": Case(256),
    "64, as fast as it goes": Case(64, rate=0),
    "256, as fast as it goes": Case(256, rate=0),
    "64, MLflow server": Case(64, server=True),
    "64, bucket": Case(64, rate=4, bucket=True, evaluations=400),
    "16 in 2 processes": Case(16, processes=2),
    "16 in 16 processes": Case(16, processes=16),
    "64 on 32 nodes": Case(64, nodes=32),
}


class StandIn:
    """A trainer that does not train: it measures and saves what a real one did."""

    template: Path

    def __init__(self, experiment: Experiment, **_: Any) -> None:
        self._experiment = experiment
        self._step = 0

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self._step >= self._experiment.training.steps

    def run_interval(self, _should_stop: Callable[[], bool]) -> Evaluation:
        """The next evaluation."""
        self._step += self._experiment.evaluation.every
        measured = json.loads((self.template / "measured.json").read_text())
        picture = (self.template / "checkpoint" / "samples.png").read_bytes()
        return Evaluation(self._step, {k: v * random.uniform(0.9, 1.1) for k, v in measured.items()}, picture)

    def save(self, folder: Path) -> None:
        """The checkpoint of a real trainer."""
        shutil.copytree(self.template / "checkpoint", folder, dirs_exist_ok=True)


def make_template(folder: Path, experiment: Experiment) -> Path:
    """What a stand-in measures and saves."""
    folder.mkdir()
    trainer = Trainer(experiment)
    evaluation = trainer.run_interval()
    assert evaluation is not None
    (folder / "measured.json").write_text(json.dumps(evaluation.metrics))
    trainer.save(folder / "checkpoint")
    return folder


class Holder:
    """A process that holds many trials; each waits, as if it trained, and then does what a trial does."""

    def __init__(self, template: Path, pause: float) -> None:
        import gpm_tune.study.running.trainable as module

        StandIn.template = template
        module.Trainer = StandIn  # type: ignore[misc, assignment]
        self._pause = pause
        self._trials: dict[int, Any] = {}

    async def create(self, key: int, trainable: Any, arguments: dict[str, Any]) -> None:
        """Let a trial's process begin."""
        await asyncio.sleep(START)
        self._trials[key] = trainable(**arguments)

    async def call(self, key: int, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of a trial's object."""
        trial = self._trials.pop(key) if method == "stop" else self._trials[key]
        if method == "train":
            end = time.monotonic() + self._pause * random.uniform(0.5, 1.5)
            while (left := end - time.monotonic()) > 0:
                trial._interrupted()  # as training does
                await asyncio.sleep(min(left, PING_EVERY))
        return getattr(trial, method)(*arguments, **named)


@dataclass(frozen=True)
class Call:
    """A remote method of a holder, with its first arguments."""

    method: Any
    first: tuple[Any, ...]

    def remote(self, *arguments: Any, **named: Any) -> Any:
        """Call it."""
        return self.method.remote(*self.first, *arguments, **named)


class Actor:
    """Stands for an actor of its own: its methods are those of a trial in a holder."""

    def __init__(self, holder: Any, key: int, trainable: Any, arguments: dict[str, Any]) -> None:
        self._holder, self._key = holder, key
        self.__ray_ready__ = Call(holder.create, (key, trainable, arguments))

    def __getattr__(self, method: str) -> Call:
        return Call(self._holder.call, (self._key, method))


class ActorClass:
    """Stands for the trials' actor class: its actors are held by a few processes, in turns."""

    def __init__(self, case: Case, template: Path) -> None:
        self._case, self._template = case, template
        self._holders: list[Any] = []
        self._made = 0
        self._trainable: Any = None
        self.all_run_from = float("inf")  # once that many are made

    def wrap(self, actor_class: Any) -> ActorClass:
        """In place of the actor class that Tune asks resources for."""
        import ray

        if not self._holders:
            self._trainable = ray.put(actor_class.__ray_metadata__.modified_class)
            make = ray.remote(num_cpus=0, max_concurrency=1000)(Holder).remote
            self._holders = [make(self._template, self._case.pause) for _ in range(self._case.processes)]
        return self

    def remote(self, **arguments: Any) -> Actor:
        """A new actor."""
        self._made += 1
        if self._made == self._case.at_a_time:
            self.all_run_from = time.perf_counter() + START + self._case.pause
        return Actor(self._holders[self._made % len(self._holders)], self._made, self._trainable, arguments)


class Costs:
    """What happens in this process and in those that serve it: CPU seconds, and counts of calls."""

    def __init__(self, server: subprocess.Popen[bytes] | None) -> None:
        self._server = server
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def watch(self) -> None:
        """Look on from now on."""
        from mlflow.tracking import MlflowClient

        self._spy(Ledger, ["next"], "asking")
        self._spy(Ledger, ["report", "keep_checkpoint", "complete", "used_up"], "telling")
        self._spy(RunLog, ["metrics", "artifact", "curve", "tags", "end"], "spooling")
        self._spy(Tracker, ["open_run"], "spooling")
        self._spy(Tracker, ["_deliver"], "delivery")
        self._spy(Mirror, ["_push"], "mirroring")
        calls = ["log_batch", "create_run", "update_run", "set_terminated", "log_artifact", "search_runs"]
        self._spy(MlflowClient, calls, "MLflow")
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", self._executes)
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", self._commits)

    def _spy(self, owner: Any, names: list[str], what: str) -> None:
        for name in names:
            setattr(owner, name, self._spied(getattr(owner, name), what))

    def _spied(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def spied(*arguments: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[what] += time.thread_time() - start
                self.calls[what] += 1

        return spied

    def _executes(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().split(" ", 1)[0] in ("INSERT", "UPDATE", "DELETE"):
            connection.info["wrote"] = True

    def _commits(self, connection: Any) -> None:
        if connection.info.pop("wrote", False) and "optuna" in connection.engine.url.database:
            self.calls["Optuna commits"] += 1

    def others(self) -> dict[str, float]:
        """CPU seconds of the processes that serve the driver."""
        found: dict[str, float] = defaultdict(float)
        server = psutil.Process(self._server.pid) if self._server else None
        served = [server, *server.children(recursive=True)] if server else []
        names = {"gcs_server": "GCS", "raylet": "raylet", "ray::Switch": "switch"}
        for process in psutil.Process().children(recursive=True):
            name = "MLflow server" if process in served else names.get(process.name().partition(".")[0])
            if name:
                times = process.cpu_times()
                found[name] += times.user + times.system
        return found


class Watch:
    """Takes the clocks when all trials run, and when the last ones have been handed out."""

    def __init__(self, actors: ActorClass, costs: Costs, requests: Callable[[], Counter[str]]) -> None:
        self._actors, self._costs, self._requests = actors, costs, requests
        self._results = self._ended = 0
        self.moments: list[dict[str, float]] = []

    def watch(self, enough: int) -> None:
        """Look on at the progress of this process's next study, until enough trials have ended."""
        measured, ended = StudyProgress.measured, StudyProgress.ended

        def after_measured(progress: StudyProgress, number: int, step: int, metrics: Any) -> None:
            measured(progress, number, step, metrics)
            self._results += 1
            if not self.moments and time.perf_counter() >= self._actors.all_run_from:
                self._take()

        def after_ended(progress: StudyProgress, number: int, state: str, reason: str | None) -> None:
            ended(progress, number, state, reason)
            self._ended += 1
            if self._ended == enough:
                self._take()

        StudyProgress.measured, StudyProgress.ended = after_measured, after_ended  # type: ignore[method-assign]

    def _take(self) -> None:
        self.moments.append(
            {
                "wall": time.perf_counter(),
                "driver": time.process_time(),
                "main": time.thread_time(),
                "MB": psutil.Process().memory_info().rss / 2**20,
                "evaluations": self._results,
                "trials": self._ended,
                **self._costs.seconds,
                **{f"{name} calls": count for name, count in self._costs.calls.items()},
                **{f"{name} requests": count for name, count in self._requests().items()},
                **self._costs.others(),
            }
        )


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
        started = time.perf_counter()
        run(case.study, home, address, actors)
        last = time.perf_counter() - watch.moments[1]["wall"]
        return row(case, *watch.moments) | {
            "s until all ran": watch.moments[0]["wall"] - started,
            "s after the last": last,
        }


def run(study: Study, home: Home, address: str, actors: ActorClass) -> None:
    """Run the study with stand-ins for its trials' processes; its lines go nowhere."""
    from ray.air.execution.resources.placement_group import PlacementGroupAcquiredResources as Acquired

    Acquired.annotate_remote_entities = lambda _, entities: [actors.wrap(entities[0])]  # type: ignore[method-assign]
    with Path(os.devnull).open("w") as nowhere:
        assert run_study(study, home, address, Console(file=nowhere))


@contextmanager
def ray_of(case: Case) -> Iterator[str]:
    """A Ray cluster whose nodes claim a CPU for each trial; its address."""
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": case.at_a_time // case.nodes}
    cluster = Cluster(True, head_node_args={**resources, "include_dashboard": False})
    try:
        for _ in range(1, case.nodes):
            cluster.add_node(**resources)
        yield cluster.address
    finally:
        cluster.shutdown()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """MLflow's server with one worker; its address and process."""
    arguments = ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    arguments += ["--artifacts-destination", str(folder / "artifacts")]
    with serving(["mlflow", "server", *arguments], folder / "mlflow.log", "/health") as served:
        yield served


@contextmanager
def bucket_server(folder: Path) -> Iterator[Callable[[], Counter[str]]]:
    """A bucket of S3; counts the requests that it took, by their kind."""
    log = folder / "bucket.log"
    with serving(["moto.server"], log, "/moto-api") as (address, _):
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        request = urllib.request.Request(f"{address}/scaling", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield lambda: Counter(map(kind, re.findall(r'"(\w+ \S+) HTTP', log.read_text())))


def kind(request: str) -> str:
    """What a request to a bucket is billed as."""
    method, _, path = request.partition(" ")
    return "LIST" if "list-type" in path else {"POST": "PUT", "HEAD": "GET"}.get(method, method)


@contextmanager
def serving(module: list[str], log: Path, path: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on 127.0.0.1 once it answers: its address and process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", *module, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(address + path, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
        yield address, process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


MAIN = ("asking", "telling", "spooling")  # parts of the main thread's work; Tune is the rest
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
asking Optuna for values and telling it, spooling for MLflow, and two threads: delivery to MLflow, mirroring
to the bucket. Trials pause so that all together measure {Case(1).rate:g} times a second, half as often with
the bucket; or they do not pause, where the case says so."""


def write(record: dict[str, Any]) -> None:
    """Keep the record as JSON, and as a table for people."""
    (RESULTS / "scaling.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = ["# Scaling: what the driver costs", "", f"{record['date']}, `{record['command']}`", ""]
    lines += [", ".join(f"{key} {value}" for key, value in record["machine"].items()), ""]
    lines += ["| at a time | " + " | ".join(COLUMNS) + " |", "|" + " --- |" * (1 + len(COLUMNS))]
    for name, found in record["cases"].items():
        cells = [f"{found[key]:.3g}" if found.get(key) else "" for key in COLUMNS]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    (RESULTS / "scaling.md").write_text("\n".join([*lines, "", NOTE, ""]))


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
        record = {
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]]),
            "machine": machine(PACKAGES),
            "cases": {name: kept[name] for name in CASES if name in kept},
        }
        write(record)


if __name__ == "__main__":
    main()
