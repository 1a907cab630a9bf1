"""MLflow stores of tests: views to be published, and what is found of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from gpm_tune.study.tracking.publisher import Publisher
from gpm_tune.study.tracking.sender import KEY_TAG
from gpm_tune.study.tracking.views import Point, Version, View
from gpm_tune.uris import URI

PARENT, CHILD, OTHER = "study", "study/0003", "study/0004"
EXPERIMENT = "my study"


class Records:
    """Views by key, as the records of a study would give them."""

    def __init__(self, *views: View) -> None:
        self.views = {view.key: view for view in views}

    def __call__(self, key: str) -> View | None:
        return self.views.get(key)


class Place:
    """A store with its artifacts, and the records that it is to be like."""

    def __init__(self, root: Path, uri: str | None = None, records: Records | None = None) -> None:
        self.root = root
        self.uri = uri or f"sqlite:///{root / 'mlflow.db'}"
        self.records = records or Records(*study())

    def publisher(self) -> Publisher:
        artifacts = str(self.root / "the artifacts") if self.uri.startswith("sqlite") else None
        return Publisher(URI(self.uri), EXPERIMENT, self.records, artifacts)

    def publish(self, *keys: str, timeout: float = 60.0) -> int:
        with self.publisher() as publisher:
            publisher.touch(*(keys or self.records.views))
            return publisher.close(timeout)

    @property
    def client(self) -> Any:
        return MlflowClient(tracking_uri=self.uri)

    def runs(self) -> dict[str, Any]:
        """Runs by key; fails where two runs share one."""
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        runs = self.client.search_runs([experiment.experiment_id])
        assert len({run.data.tags[KEY_TAG] for run in runs}) == len(runs)
        return {run.data.tags[KEY_TAG]: run for run in runs}

    def history(self, key: str, metric: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.runs()[key].info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def rows(self) -> dict[str, list[str]]:
        """All that the store has, by table."""
        with sqlite3.connect(self.root / "mlflow.db") as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            return {name: sorted(map(repr, database.execute(f"SELECT * FROM {name}"))) for (name,) in tables}

    def files(self) -> dict[str, bytes]:
        folder = self.root / "the artifacts"
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    def shown(self) -> dict[str, Any]:
        """All that is shown, but for what MLflow draws by lot or takes from a clock."""
        client, runs = self.client, self.runs()
        keys = {run.info.run_id: key for key, run in runs.items()}
        found: dict[str, Any] = {"models": []}
        for key, run in runs.items():
            own = run.info.run_id
            tags = dict(run.data.tags)
            tags.pop("gpm.published")  # has the parent's id
            if "mlflow.parentRunId" in tags:
                tags["mlflow.parentRunId"] = keys[tags["mlflow.parentRunId"]]
            points = [p for name in run.data.metrics for p in client.get_metric_history(own, name)]
            found[key] = {
                "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
                "tags": tags,
                "params": run.data.params,
                "latest": repr(sorted(run.data.metrics.items())),
                "points": sorted(repr((p.key, p.step, p.timestamp, p.value)) for p in points),
                "files": {p.partition("/artifacts/")[2]: c for p, c in self.files().items() if own in p},
            }
        for version in client.search_model_versions():
            found["models"].append((version.name, version.version, keys[version.run_id], version.tags))
        return found


def points(name: str, values: Mapping[int, float]) -> list[Point]:
    """Values by step, each at a time of its own."""
    return [Point(name, value, 1_700_000_000_000 + step, step) for step, value in values.items()]


def view(key: str = CHILD, **changes: Any) -> View:
    """A run with nothing in it, but for what is given."""
    empty: dict[str, Any] = {"parent": None, "started": 1_700_000_000_000, "ended": None, "status": "RUNNING"}
    empty |= {"name": key, "params": {}, "tags": {}, "points": [], "files": {}}
    return View(key, **{**empty, **changes})


def study() -> tuple[View, View]:
    """A study and a trial of it, with something of everything."""
    nan, inf = float("nan"), float("inf")
    child = view(
        parent=PARENT,
        name="trial 3",
        status="KILLED",
        ended=1_700_000_000_999,
        params={
            "lr": 2e-4,
            "betas": [0.5, 0.999],
            "long": "x" * 7000,
            "model": {"name": "edm", "teacher": None},
        },
        tags={"gpm.reason": "pruned"},
        points=[
            *points("fid", {100: 10.0, 200: 5.0, 300: 1000 / 3}),
            *points("fid/nfe_18", {100: nan, 200: nan, 300: nan}),
            *points("loss", {100: inf, 200: -inf, 300: 1.0}),
            *points("best/fid", {100: 10.0, 200: 5.0}),
            *points("fid_by_nfe", {2: 9.0, 18: nan}),
        ],
        files={
            "samples/step_000300.png": lambda: b"\x89PNG",
            "experiment.yaml": lambda: b"name: x\n",
            "checkpoint/weights.safetensors": lambda: b"weights",
        },
        versions=[Version("digits", {"step": "200", "value": "5.0"})],
    )
    files = {"study.yaml": lambda: b"trials: 64", "requirements.txt": lambda: b"torch==2.14.1\n"}
    parent = view(
        PARENT, name="study", status="FINISHED", ended=1_700_000_001_000, tags={"gpm.a": "b"}, files=files
    )
    return parent, child
