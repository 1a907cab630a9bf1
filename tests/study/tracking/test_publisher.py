"""The publisher against real MLflow: what is shown is what the records have, whatever breaks."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from program import Started, call, empty_tables, give_tables
from stores import CHILD, EXPERIMENT, OTHER, PARENT, Place, Records, points, study, view

from gpm_tune.study.tracking.publisher import PUBLISHED_TAG, Publisher
from gpm_tune.study.tracking.views import View
from gpm_tune.uris import URI

Log = pytest.LogCaptureFixture
HERE = str(Path(__file__).parent)
LIMITS = 1500  # points, of which MLflow takes 1,000 at a time


@pytest.fixture(autouse=True)
def gather_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpm_tune.study.tracking.publisher.GATHER", 0.1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    give_tables(tmp_path)
    return Place(tmp_path)


def warnings_of(caplog: Log) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "gpm_tune" and r.levelno == logging.WARNING]


def check_study(place: Place) -> None:
    runs, (parent_view, child_view) = place.runs(), study()
    assert set(runs) == {PARENT, CHILD}
    parent, child = runs[PARENT], runs[CHILD]
    for run, shown in ((parent, parent_view), (child, child_view)):
        assert (run.info.run_name, run.info.status) == (shown.name, shown.status)
        assert (run.info.start_time, run.info.end_time) == (shown.started, shown.ended)
    assert parent.data.tags["gpm.a"] == "b"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["gpm.reason"] == "pruned"
    assert child.data.params["betas"] == "[0.5, 0.999]"
    assert (child.data.params["model.name"], child.data.params["model.teacher"]) == ("edm", "None")
    assert len(child.data.params["long"]) == 6000
    for name in {point.name for point in child_view.points}:
        found = place.client.get_metric_history(child.info.run_id, name)
        stored = {(p.step, p.timestamp, "nan" if math.isnan(p.value) else p.value) for p in found}
        most = sys.float_info.max  # as MLflow keeps infinity
        assert stored == {
            (p.step, p.time, "nan" if math.isnan(p.value) else max(-most, min(most, p.value)))
            for p in child_view.points
            if p.name == name
        }
        assert len(found) == len(stored)
    assert child.data.metrics["best/fid"] == 5.0
    for run, shown in ((parent, parent_view), (child, child_view)):
        for path, read in shown.files.items():
            downloaded = place.client.download_artifacts(run.info.run_id, path, str(place.root))
            assert Path(downloaded).read_bytes() == read()


def test_a_study_arrives_complete_and_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path, f"sqlite:///{tmp_path / 'new folder' / 'mlflow.db'}")
    assert place.publish() == 0
    assert capfd.readouterr() == ("", "")
    check_study(place)
    assert list((place.root / "the artifacts").iterdir())
    (version,) = place.client.search_model_versions("name = 'digits'")
    assert version.tags == {"step": "200", "value": "5.0"}
    assert (
        Path(
            urllib.request.url2pathname(version.source.removeprefix("file://")), "weights.safetensors"
        ).read_bytes()
        == b"weights"
    )


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["known", "as if cut short"])
def test_a_second_delivery_changes_nothing(place: Place, is_forgotten: bool) -> None:
    place.publish()
    rows, files = place.rows(), place.files()
    if is_forgotten:  # that all of it has arrived
        for run in place.runs().values():
            place.client.delete_tag(run.info.run_id, PUBLISHED_TAG)
        assert place.rows() != rows
    assert place.publish() == 0
    assert place.rows() == rows
    assert place.files() == files


def test_what_grows_bit_by_bit_is_shown_as_what_came_at_once(tmp_path: Path) -> None:
    """By one process, by one process for each bit, and at once."""
    bits, (parent, child) = (0, 1, 4, 9, 13, len(study()[1].points)), study()
    places = []
    for name in ("one", "each", "at once"):
        give_tables(tmp_path / name)
        places.append(Place(tmp_path / name, records=Records(parent)))
    one, each, at_once = places
    with one.publisher() as publisher:
        for count in bits:
            now = dataclasses.replace(
                child,
                points=child.points[:count],
                files=child.files if count > 4 else {},
                status="RUNNING" if count < len(child.points) else child.status,
                ended=None if count < len(child.points) else child.ended,
            )
            for place in (one, each, at_once):
                place.records.views[CHILD] = now
            publisher.touch(CHILD)
            each.publish(CHILD)
            wait_until(lambda: not publisher._touched, 30)
        publisher.touch(PARENT)
    each.publish(PARENT)
    at_once.publish()
    assert one.shown() == each.shown() == at_once.shown()


def test_what_was_sent_is_not_sent_again_by_the_same_process(place: Place) -> None:
    sent: list[int] = []
    log_batch = MlflowClient.log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), **others: Any) -> Any:
        sent.append(len(metrics))
        return log_batch(self, run_id, metrics=metrics, **others)

    with pytest.MonkeyPatch.context() as patch, place.publisher() as publisher:
        patch.setattr(MlflowClient, "log_batch", counted)
        for count in (400, 401, 402):
            place.records.views[CHILD] = view(points=points("fid", dict.fromkeys(range(count), math.nan)))
            publisher.touch(CHILD)
            wait_until(lambda: not publisher._touched, 30)
            if count == 401:
                place.client.set_tag(place.runs()[CHILD].info.run_id, PUBLISHED_TAG, "by another process")
    assert [count for count in sent if count] == [400, 1, 402]
    assert len(place.history(CHILD, "fid")) == 402


def test_a_child_alone_brings_its_parent(place: Place) -> None:
    assert place.publish(CHILD) == 0
    check_study(place)


def test_a_run_whose_parent_is_unknown_is_tracked_alone(place: Place, caplog: Log) -> None:
    place.records.views = {CHILD: study()[1]}
    assert place.publish(CHILD, "no such run") == 0
    assert "mlflow.parentRunId" not in place.runs()[CHILD].data.tags
    (warning,) = warnings_of(caplog)
    assert f"run {CHILD} is tracked without its parent {PARENT}" in warning
    place.records.views[PARENT] = study()[0]
    assert place.publish(CHILD) == 0
    check_study(place)


def test_a_run_goes_on_and_ends_again(place: Place) -> None:
    for status, ended in (("KILLED", 1_700_000_000_500), ("RUNNING", None), ("FINISHED", 1_700_000_000_900)):
        place.records.views[CHILD] = view(status=status, ended=ended)
        place.publish(CHILD)
        run = place.runs()[CHILD]
        assert run.info.status == status
        assert ended is None or run.info.end_time == ended


def test_refused_values_are_named_and_the_rest_arrives(place: Place, caplog: Log) -> None:
    place.records.views = {CHILD: view(params={"lr": 0.1})}
    place.publish()
    values = [*points("fid", dict.fromkeys(range(1, 9), 1.0)), *points("fid@nfe=18", {5: 1.0})]
    values.insert(4, values.pop())
    changed = view(
        params={"lr": 0.2, "eta": 1}, tags={"second": "yes"}, points=values, status="FAILED", ended=1
    )
    place.records.views = {CHILD: changed}
    assert place.publish() == 0
    refused = warnings_of(caplog)
    assert len(refused) == 2
    assert f"'lr' of the params of run {CHILD}" in refused[0]
    assert f"'fid@nfe=18' of the metrics of run {CHILD}" in refused[1]
    assert [step for step, _ in place.history(CHILD, "fid")] == list(range(1, 9))
    run = place.runs()[CHILD]
    assert run.data.params == {"lr": "0.1", "eta": "1"}
    assert (run.data.tags["second"], run.info.status) == ("yes", "FAILED")
    caplog.clear()
    assert place.publish() == 0
    assert not warnings_of(caplog), "it is known to be refused"


def test_requests_stay_below_the_limits_of_mlflow(place: Place) -> None:
    many = [*points("fid", {step: step for step in range(LIMITS)})]
    many += [point for number in range(LIMITS) for point in points(f"m{number}", {1: number})]
    params = {f"p{number}": number for number in range(250)}
    place.records.views = {CHILD: view(params=params, points=many, tags={f"t{n}": "x" for n in range(250)})}
    assert place.publish() == 0
    run = place.runs()[CHILD]
    assert len(run.data.params) == 250
    assert sum(name.startswith("t") for name in run.data.tags) == 250
    assert len(run.data.metrics) == LIMITS + 1
    assert place.history(CHILD, "fid") == [(step, step) for step in range(LIMITS)]


def test_mlflow_sorts_by_the_best(place: Place) -> None:
    ends = {CHILD: {1: 3.0, 2: 1.0}, OTHER: {1: 1.5, 2: math.nan, 3: 4.0}}
    place.records.views = {key: view(key, points=points("best/fid", values)) for key, values in ends.items()}
    place.publish()
    experiment = place.client.get_experiment_by_name(EXPERIMENT).experiment_id
    found = place.client.search_runs([experiment], order_by=["metrics.`best/fid` ASC"])
    assert [run.data.tags["gpm.run"] for run in found] == [CHILD, OTHER]
    assert [run.data.metrics["best/fid"] for run in found] == [1.0, 4.0]


def test_a_deleted_run_is_made_again(place: Place) -> None:
    """By the process that made it, too; the children of a deleted parent follow the new one."""
    with place.publisher() as publisher:
        publisher.touch(PARENT, CHILD)
        wait_until(lambda: not publisher._touched, 30)
        place.client.delete_run(place.runs()[PARENT].info.run_id)
        publisher.touch(PARENT, CHILD)
        wait_until(lambda: not publisher._touched, 30)
        check_study(place)
    for run in place.runs().values():
        place.client.delete_run(run.info.run_id)
    assert place.publish() == 0
    check_study(place)


def test_a_lost_database_is_filled_again(place: Place, tmp_path: Path) -> None:
    """By another process: this one has the lost file open."""
    place.publish()
    (place.root / "lost").mkdir()
    lost = Place(place.root / "lost")
    for _ in range(2):
        (lost.root / "mlflow.db").unlink(missing_ok=True)
        give_tables(lost.root)
        shutil.rmtree(lost.root / "the artifacts", ignore_errors=True)
        assert call(tmp_path, str(lost.root), code=AGAIN, PYTHONPATH=HERE).returncode == 0
    assert lost.shown() == place.shown()


AGAIN = """
import sys
from pathlib import Path
from stores import Place
sys.exit(Place(Path(sys.argv[1])).publish())
"""


def test_a_deleted_experiment_is_restored(place: Place) -> None:
    place.publish()
    place.client.delete_experiment(place.client.get_experiment_by_name(EXPERIMENT).experiment_id)
    place.records.views[CHILD] = dataclasses.replace(study()[1], tags={"gpm.reason": "pruned", "new": "yes"})
    assert place.publish() == 0
    assert place.client.get_experiment_by_name(EXPERIMENT).lifecycle_stage == "active"
    check_study(place)


def test_of_two_runs_with_one_key_the_same_is_kept_by_all(place: Place) -> None:
    place.publish()
    experiment = place.client.get_experiment_by_name(EXPERIMENT).experiment_id
    for _ in range(3):  # publishers on other machines
        place.client.create_run(experiment, study()[1].started, {"gpm.run": CHILD}, "trial 3")
    assert place.publish() == 0
    check_study(place)
    kept = place.runs()[CHILD].info.run_id
    assert place.publish() == 0
    assert place.runs()[CHILD].info.run_id == kept


def test_a_file_that_was_cut_short_is_sent_again_and_one_that_is_gone_is_named(
    place: Place, caplog: Log
) -> None:
    place.publish()
    (cut,) = (place.root / "the artifacts").rglob("weights.safetensors")
    cut.write_bytes(b"wei")
    run_id = place.runs()[CHILD].info.run_id
    place.client.delete_tag(run_id, PUBLISHED_TAG)  # a process that was killed meanwhile
    missing = place.root / "dropped.png"
    child = study()[1]
    place.records.views[CHILD] = dataclasses.replace(
        child, files={**child.files, "samples/dropped.png": missing.read_bytes}
    )
    assert place.publish() == 0
    assert cut.read_bytes() == b"weights"
    check_study(place)
    (warning,) = warnings_of(caplog)
    assert f"samples/dropped.png of run {CHILD} is not tracked" in warning


def test_a_study_file_that_changed_is_sent_again(place: Place) -> None:
    for text in (b"trials: 64", b"trials: 65"):
        place.records.views[PARENT] = dataclasses.replace(study()[0], files={"study.yaml": lambda t=text: t})
        place.publish()
        (sent,) = (place.root / "the artifacts").rglob("study.yaml")
        assert sent.read_bytes() == text


@pytest.mark.parametrize("key", ["", "it's", 'a"b', "a\nb"])
def test_keys_that_cannot_be_searched_for_are_refused(place: Place, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        place.publisher().touch(key)


def test_records_that_are_away_delay_their_run_and_no_other(place: Place, caplog: Log) -> None:
    is_away = threading.Event()
    is_away.set()

    def read(key: str) -> View | None:
        if key == CHILD and is_away.is_set():
            raise sqlite3.OperationalError("database is locked")
        return place.records(key)

    with Publisher(URI(place.uri), EXPERIMENT, read, str(place.root / "the artifacts")) as publisher:
        publisher.touch(CHILD, PARENT)
        wait_until(lambda: set(publisher._touched) == {CHILD}, 30)
        assert set(place.runs()) == {PARENT}
        is_away.clear()
        assert publisher.close(60) == 0
    check_study(place)
    (warning,) = warnings_of(caplog)
    assert f"run {CHILD} cannot be read now (database is locked)" in warning


def test_what_is_touched_while_it_is_sent_is_sent_again(place: Place) -> None:
    """Threads report as fast as they can; the last view of each run is shown in the end."""
    keys = [f"study/{number:04d}" for number in range(4)]
    with place.publisher() as publisher:

        def report(key: str) -> None:
            for step in range(1, 60):
                place.records.views[key] = view(key, points=points("fid", dict.fromkeys(range(step), 1.0)))
                publisher.touch(key)
                time.sleep(0.01)

        threads = [threading.Thread(target=report, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert publisher.close(60) == 0
    for key in keys:
        assert len(place.history(key, "fid")) == 59


def test_two_publishers_at_once_in_a_fresh_store_make_one_of_each(tmp_path: Path) -> None:
    processes = [Started(tmp_path, code=AGAIN, PYTHONPATH=HERE) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    place = Place(tmp_path)
    assert place.publish() == 0
    check_study(place)


def test_an_unreachable_store_costs_close_its_timeout(tmp_path: Path, caplog: Log) -> None:
    place = Place(tmp_path, f"http://user:secret@127.0.0.1:{free_port()}")
    with place.publisher() as publisher:
        publisher.touch(PARENT, CHILD)
        start = time.monotonic()
        assert publisher.close(timeout=4) == 2
        assert time.monotonic() - start < 6
    warnings = warnings_of(caplog)
    assert len(warnings) == 2
    assert "does not answer" in warnings[0]
    assert "2 runs are not up to date in http://***@127.0.0.1" in warnings[1]
    assert "the same command again delivers them" in warnings[1]
    assert all("secret" not in warning for warning in warnings)


def test_closing_says_how_many_runs_it_could_not_deliver(place: Place) -> None:
    away = Place(place.root, f"http://127.0.0.1:{free_port()}", place.records)
    assert away.publish(timeout=4.0) == len(place.records.views)
    assert place.publish() == 0
    check_study(place)


def test_importing_the_publisher_does_not_import_mlflow() -> None:
    code = "import sys, gpm_tune.study.tracking.publisher; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_store_that_refuses_a_study_is_named_and_the_study_goes_on(
    tmp_path: Path, answering: str, caplog: Log
) -> None:
    place = Place(tmp_path, f"{answering}/401")
    with caplog.at_level(logging.WARNING), place.publisher() as publisher:
        publisher.touch(CHILD)
        wait_until(lambda: "cannot be used" in caplog.text, 30)
        assert publisher.close(0) == 1
    assert "401" in caplog.text


KILLS = """
import os, shutil, sys
from pathlib import Path
from mlflow.tracking import MlflowClient
from stores import EXPERIMENT, Place
from gpm_tune.study.tracking.sender import import_for_delivery

root, empty = map(Path, sys.argv[1:])
import_for_delivery("sqlite://")
calls = [name for name in vars(MlflowClient) if not name.startswith("_")]

def dying(call, left):
    def counted(*args, **named):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return call(*args, **named)
    return counted

def publish(folder, limit):
    # Returns whether the process was killed at a call beyond the limit.
    process = os.fork()
    if process == 0:
        left = [limit]
        for name in calls:
            setattr(MlflowClient, name, dying(getattr(MlflowClient, name), left))
        os._exit(Place(folder).publish())
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9), code
    return code == 9

number, is_killed = 0, True
while is_killed:
    folder = root / f"{number:03d}"
    folder.mkdir()
    shutil.copy(empty, folder / "mlflow.db")
    is_killed = publish(folder, number)
    assert not publish(folder, 10**6)
    number += 1
"""


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_call_leaves_what_the_next_one_completes(tmp_path: Path) -> None:
    done = call(tmp_path, str(tmp_path), str(empty_tables()), code=KILLS, PYTHONPATH=HERE)
    assert done.returncode == 0
    *disturbed, undisturbed = sorted(tmp_path.iterdir())
    assert len(disturbed) > 15, "the calls are counted"
    expected = Place(undisturbed).shown()
    for folder in disturbed:
        assert Place(folder).shown() == expected, folder.name
        with sqlite3.connect(folder / "mlflow.db") as database:
            assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (2,)


@pytest.mark.slow
def test_what_changes_in_an_outage_arrives_once(tmp_path: Path, caplog: Log) -> None:
    caplog.set_level(logging.INFO, "gpm_tune")
    port = free_port()
    place = Place(tmp_path, f"http://127.0.0.1:{port}")
    with place.publisher() as publisher:
        publisher.touch(PARENT, CHILD)
        wait_until(lambda: "does not answer" in caplog.text, 60)
        with mlflow_server(tmp_path, port):
            wait_until(lambda: "is back" in caplog.text, 120)
            check_study(place)
            (version,) = place.client.search_model_versions("name = 'digits'")
            assert version.run_id == place.runs()[CHILD].info.run_id
        child = study()[1]
        more = [*child.points, *points("fid", {400: 2.5})]
        place.records.views[CHILD] = dataclasses.replace(child, points=more)
        publisher.touch(CHILD)
        wait_until(lambda: caplog.text.count("does not answer") == 2, 60)
        with mlflow_server(tmp_path, port):
            wait_until(lambda: caplog.text.count("is back") == 2, 120)
            assert [step for step, _ in place.history(CHILD, "fid")] == [100, 200, 300, 400]
        (tmp_path / "server.db").unlink()  # lost, and the publisher knows nothing of it
        publisher.touch(PARENT, CHILD)
        wait_until(lambda: caplog.text.count("does not answer") == 3, 60)
        with mlflow_server(tmp_path, port):
            assert publisher.close(timeout=60) == 0
            assert [step for step, _ in place.history(CHILD, "fid")] == [100, 200, 300, 400]
            assert place.runs()[PARENT].info.status == "FINISHED"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def mlflow_server(root: Path, port: int) -> Iterator[None]:
    """A real server with its store under root, ready; ended with all its processes."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--backend-store-uri", f"sqlite:///{root / 'server.db'}"]
    command += ["--artifacts-destination", str(root / "server-artifacts")]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (root / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: is_healthy(port), 120)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
