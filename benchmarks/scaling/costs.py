"""What a study's driver, and the processes that serve it, spend."""

from __future__ import annotations

import functools
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import psutil
import sqlalchemy

from benchmarks.scaling.stand_ins import ActorClass
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.running.progress import StudyProgress
from gpm_tune.study.storage.mirror import Mirror
from gpm_tune.study.tracking.publisher import Publisher


class Costs:
    """What happens in this process and in those that serve it: CPU seconds, and counts of calls."""

    def __init__(self, server: subprocess.Popen[bytes] | None) -> None:
        self._server = server
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def watch(self) -> None:
        """Look on from now on."""
        from mlflow.tracking import MlflowClient

        self._spy(TrialManager, ["next"], "asking")
        self._spy(TrialManager, ["report", "keep_run", "complete", "used_up"], "telling")
        self._spy(Publisher, ["touch"], "touching")
        self._spy(Publisher, ["_deliver"], "delivery")
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
