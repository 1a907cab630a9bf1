"""The tracker against real MLflow: each event arrives, once, in its run, whatever breaks."""

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpm_tune.errors import UserError
from gpm_tune.study.tracking.sender import KEY_TAG, check_store
from gpm_tune.study.tracking.spool import Spool
from gpm_tune.study.tracking.tracker import Tracker
from gpm_tune.uris import URI

PARENT, CHILD = "study/parent", "study/0003"


class Place:
    """A spool folder and a MLflow store, which outlive trackers."""

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root = root
        self.spools = root / "spools"
        self.uri = uri or f"sqlite:///{root / 'mlflow.db'}"

    def tracker(self) -> Tracker:
        local = self.uri.startswith("sqlite")
        artifacts = str(self.root / "the artifacts") if local else None
        return Tracker(self.spools, URI(self.uri), "my study", artifacts)

    def spool(self, key: str) -> Spool:
        return Spool(Spool.folder_of(self.spools, key))

    @property
    def client(self):
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def runs(self) -> dict:
        """Runs by key; fails where two runs share one."""
        experiment = self.client.get_experiment_by_name("my study")
        runs = self.client.search_runs([experiment.experiment_id])
        assert len({run.data.tags[KEY_TAG] for run in runs}) == len(runs)
        return {run.data.tags[KEY_TAG]: run for run in runs}

    def history(self, key: str, metric: str) -> list[tuple[int, float]]:
        run_id = self.runs()[key].info.run_id
        points = self.client.get_metric_history(run_id, metric)
        return sorted((point.step, point.value) for point in points)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store without runs; to copy it is faster than to make it."""
    root = tmp_path_factory.mktemp("store")
    with Place(root).tracker() as tracker:
        tracker.open_run("nothing", name="nothing", params={}, tags={})
    client = Place(root).client
    client.delete_run(Place(root).runs()["nothing"].info.run_id)
    client.rename_experiment(client.get_experiment_by_name("my study").experiment_id, "another")
    return root / "mlflow.db"


@pytest.fixture
def place(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path)
    return Place(tmp_path)


def open_child(tracker, **changes):
    return tracker.open_run(
        CHILD,
        **{"name": "trial 3", "parent": PARENT, "params": {"lr": 0.1}, "tags": {}, **changes},
    )


def record_study(tracker):
    parent = tracker.open_run(PARENT, name="study", params={"trials": 64}, tags={"gpm.a": "b"})
    child = open_child(tracker, params={"lr": 2e-4, "betas": [0.5, 0.999], "long": "x" * 7000})
    for step in (100, 200, 300):
        child.metrics(step, {"fid": 1000 / step, "fid/nfe_18": math.nan, "loss": math.inf})
    child.artifact("samples/step_000300.png", b"\x89PNG")
    child.artifact("config.yaml", b"name: x\n")
    child.tags({"gpm.reason": "pruned"})
    child.end("KILLED")
    parent.end("FINISHED")


def check_study(place):
    runs = place.runs()
    assert set(runs) == {PARENT, CHILD}
    parent, child = runs[PARENT], runs[CHILD]
    assert parent.info.run_name == "study"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["gpm.a"] == "b"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["gpm.reason"] == "pruned"
    assert child.info.status == "KILLED"
    assert child.data.params["betas"] == "[0.5, 0.999]"
    assert len(child.data.params["long"]) == 6000
    events = place.spool(CHILD)
    events.rewind()
    recorded = events.pending(99)
    assert child.info.start_time == recorded[0].time
    assert child.info.end_time == recorded[-1].time
    times = {e.payload["step"]: e.time for e in recorded if e.kind == "metrics"}
    points = place.client.get_metric_history(child.info.run_id, "fid")
    assert [(p.step, p.value, p.timestamp) for p in points] == [
        (step, 1000 / step, times[step]) for step in (100, 200, 300)
    ]
    for special in ("fid/nfe_18", "loss"):
        assert len(place.client.get_metric_history(child.info.run_id, special)) == 3
    downloaded = place.client.download_artifacts(child.info.run_id, "samples", str(place.root))
    assert (Path(downloaded) / "step_000300.png").read_bytes() == b"\x89PNG"
    names = {file.path for file in place.client.list_artifacts(child.info.run_id)}
    assert names == {"samples", "config.yaml"}


def test_parent_and_child_arrive_complete_and_quietly(tmp_path, capfd):
    place = Place(tmp_path, f"sqlite:///{tmp_path / 'new folder' / 'mlflow.db'}")
    with place.tracker() as tracker:
        record_study(tracker)
    assert tracker.close() == 0
    assert capfd.readouterr() == ("", "")
    check_study(place)
    assert list((place.root / "the artifacts").iterdir())


def test_delivering_twice_changes_nothing(place):
    with place.tracker() as tracker:
        record_study(tracker)
    for delivered in place.spools.glob("*/delivered"):
        delivered.unlink()
    with place.tracker() as tracker:
        pass
    assert tracker.close() == 0
    check_study(place)


def test_a_new_tracker_continues_the_run_of_a_killed_one(place):
    with place.tracker() as tracker:
        child = open_child(tracker, parent=None)
        child.metrics(1, {"fid": 9.0})
    child.metrics(2, {"fid": 8.0})  # recorded, and then the process died
    before = place.runs()[CHILD].info.run_id

    with place.tracker() as tracker:
        child = open_child(tracker, parent=None)
        for step in (1, 2, 3):
            child.metrics(step, {"fid": 100.0 + step})
        child.end("FINISHED")
    assert place.history(CHILD, "fid") == [(1, 9.0), (2, 8.0), (3, 103.0)]
    assert place.runs()[CHILD].info.run_id == before


def test_what_an_earlier_process_left_is_delivered_at_start(place):
    record_study(place.tracker())  # never started, so nothing was delivered
    with place.tracker() as tracker:
        pass
    assert tracker.close() == 0
    check_study(place)


def test_an_ended_run_opened_again_is_running(place):
    with place.tracker() as tracker:
        child = open_child(tracker, parent=None)
        child.end("FAILED")
    assert place.runs()[CHILD].info.status == "FAILED"
    with place.tracker() as tracker:
        open_child(tracker, parent=None)
    assert place.runs()[CHILD].info.status == "RUNNING"


def test_a_refused_event_is_named_and_the_rest_goes_on(place, caplog):
    with place.tracker() as tracker:
        child = open_child(tracker, parent=None)
        child = open_child(tracker, parent=None, params={"lr": 0.2}, tags={"second": "yes"})
        for step in range(1, 9):
            child.metrics(step, {"fid@nfe=18" if step == 5 else "fid": float(step)})
        child.end("FINISHED")
    assert tracker.close() == 0
    refused = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(refused) == 2
    assert f"'open' of run {CHILD}" in refused[0]
    assert f"'metrics' of step 5 of run {CHILD}" in refused[1]
    assert place.history(CHILD, "fid") == [(step, step) for step in (1, 2, 3, 4, 6, 7, 8)]
    run = place.runs()[CHILD]
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["second"] == "yes"
    assert run.info.status == "FINISHED"


def test_requests_stay_below_the_limits_of_mlflow(place):
    with place.tracker() as tracker:
        child = open_child(tracker, parent=None, params={f"p{i}": i for i in range(250)})
        child.metrics(1, {f"m{i}": i for i in range(1500)})
        for step in range(2, 1500):
            child.metrics(step, {"fid": step, "loss": -step})
    assert tracker.close() == 0
    run = place.runs()[CHILD]
    assert len(run.data.params) == 250
    assert len(run.data.metrics) == 1502
    assert place.history(CHILD, "fid") == [(step, step) for step in range(2, 1500)]


def test_the_best_is_what_mlflow_sorts_by_and_arrives_once(place):
    """The last value that was told counts, also at one step; all of it delivered again changes nothing."""
    with place.tracker() as tracker:
        child = open_child(tracker, parent=None)
        for step, (value, best) in enumerate([(3.0, 3.0), (1.0, 1.0), (2.0, 1.0)], start=1):
            child.metrics(step, {"fid": value})
            child.best(2 if best == 1.0 else step, {"fid": best})
        other = tracker.open_run("study/other", name="other")
        for value in (1.5, float("nan"), 4.0):
            other.best(1, {"fid": value})
    for _ in range(2):
        client, runs = place.client, place.runs()
        assert place.history(CHILD, "best/fid") == [(1, 3.0), (2, 1.0)]
        assert runs[CHILD].data.metrics == {"fid": 2.0, "best/fid": 1.0}
        assert runs["study/other"].data.metrics == {"best/fid": 4.0}, "neither the greatest nor the first"
        experiment = client.get_experiment_by_name("my study").experiment_id
        found = client.search_runs([experiment], order_by=["metrics.`best/fid` ASC"])
        assert [run.data.tags["gpm.run"] for run in found] == [CHILD, "study/other"]
        for key in (CHILD, "study/other"):
            place.spool(key).rewind()
        with place.tracker() as tracker:
            assert tracker.close() == 0


def test_a_run_that_the_store_lost_is_made_again(place):
    with place.tracker() as tracker:
        record_study(tracker)
    for run in place.runs().values():
        place.client.delete_run(run.info.run_id)
    with place.tracker() as tracker:
        open_child(tracker).metrics(400, {"fid": 2.5})
    assert tracker.close() == 0
    assert [step for step, _ in place.history(CHILD, "fid")] == [100, 200, 300, 400]
    assert place.runs()[PARENT].info.status == "FINISHED"


def test_a_deleted_experiment_is_restored(place):
    with place.tracker() as tracker:
        open_child(tracker, parent=None).metrics(1, {"fid": 1.0})
    experiment = place.client.get_experiment_by_name("my study")
    place.client.delete_experiment(experiment.experiment_id)
    with place.tracker() as tracker:
        open_child(tracker, parent=None).metrics(2, {"fid": 2.0})
    assert tracker.close() == 0
    assert place.client.get_experiment_by_name("my study").lifecycle_stage == "active"
    assert place.history(CHILD, "fid") == [(1, 1.0), (2, 2.0)]


def test_a_run_whose_parent_is_unknown_is_tracked_alone(place, caplog):
    with place.tracker() as tracker:
        open_child(tracker)
    assert tracker.close() == 0
    assert "mlflow.parentRunId" not in place.runs()[CHILD].data.tags
    assert "without its parent" in caplog.text


@pytest.mark.parametrize("key", ["", "it's", 'a"b', "a\nb"])
def test_keys_that_cannot_be_searched_for_are_refused(place, key):
    with pytest.raises(ValueError, match="key"):
        place.tracker().open_run(key, name="x", params={}, tags={})


def test_an_end_is_one_that_mlflow_knows(place):
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED"):
        open_child(place.tracker()).end("PRUNED")


def test_an_unreachable_store_costs_close_its_timeout_and_no_event(tmp_path, caplog):
    place = Place(tmp_path, f"http://user:secret@127.0.0.1:{free_port()}")
    tracker = place.tracker()
    with tracker:
        open_child(tracker).metrics(1, {"fid": 1.0})
        start = time.monotonic()
        assert tracker.close(timeout=4) == 2
        assert time.monotonic() - start < 6
    assert place.spool(CHILD).undelivered == 2
    warnings = [r.getMessage() for r in caplog.records if r.name == "gpm_tune"]
    assert len(warnings) == 2
    assert "2 events are not in http://***@127.0.0.1" in warnings[1]
    assert all("secret" not in warning for warning in warnings)


def test_importing_the_tracker_does_not_import_mlflow():
    code = "import sys, gpm_tune.study.tracking.tracker; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_events_of_an_outage_arrive_in_order_and_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gpm_tune")
    port = free_port()
    place = Place(tmp_path, f"http://127.0.0.1:{port}")
    with place.tracker() as tracker:
        record_study(tracker)
        wait_until(lambda: "does not answer" in caplog.text, 60)
        with mlflow_server(tmp_path, port):
            wait_until(lambda: "is back" in caplog.text, 120)
            check_study(place)
        child = open_child(tracker, params={})
        child.metrics(400, {"fid": 2.5})
        wait_until(lambda: caplog.text.count("does not answer") == 2, 60)
        child.metrics(500, {"fid": 2.0})
        with mlflow_server(tmp_path, port):
            assert tracker.close(timeout=60) == 0
            steps = [step for step, _ in place.history(CHILD, "fid")]
            assert steps == [100, 200, 300, 400, 500]
            assert place.runs()[CHILD].info.status == "RUNNING"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@contextlib.contextmanager
def mlflow_server(root: Path, port: int):
    """A real server with its store under root, ready; ended with all its processes."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--backend-store-uri", f"sqlite:///{root / 'server.db'}"]
    command += ["--artifacts-destination", str(root / "server-artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (root / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
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
            return answer.status == 200
    except OSError:
        return False


def test_nothing_that_others_look_at_is_left_to_be_imported_by_the_thread(tmp_path):
    """Matplotlib asks a half made IPython for its version, and a training would end by it."""
    pytest.importorskip("IPython")
    script = (
        "import sys; from pathlib import Path; from gpm_tune.study.tracking.tracker import Tracker\n"
        "from gpm_tune.uris import URI\n"
        "with Tracker(Path('spool'), URI('sqlite:///mlflow.db'), 'small'):\n"
        "    print(sys.modules['IPython'].version_info)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    """The address of a server that answers /CODE with that code, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            _, code, *rest = self.path.split("/")
            self.send_response(int(code))
            self.end_headers()
            self.wfile.write(b"Invalid Host header" if rest[0] == "host" else b"no")

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("store", "said", "advice"),
    [
        ("unknown://here", "unsupported URI", "sqlite:///FILE"),
        ("./mlruns", "maintenance mode", "sqlite:///FILE"),
        ("http://[half", "Invalid IPv6 URL", "http://SERVER:PORT"),
        ("mssql://sam:s3cret@127.0.0.1/x", "No module named 'pyodbc'", "pyodbc"),
        ("/401", "401", "MLFLOW_TRACKING_PASSWORD"),
        ("/403", "403", "MLFLOW_TRACKING_TOKEN"),
        ("/403/host", "403", "--allowed-hosts"),
        ("/404", "404", "http://SERVER:PORT"),
    ],
)
def test_a_store_that_can_never_be_used_is_refused(store, said, advice, answering):
    with pytest.raises(UserError) as refused:
        check_store(URI(f"{answering}{store}" if store.startswith("/") else store))
    reason, help_line = str(refused.value).split("\nhelp: ")
    assert said in reason
    assert advice in help_line
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("store", ["/500", "/503", "http://127.0.0.1:1"])
def test_a_store_that_is_away_is_waited_for(store, answering):
    check_store(URI(f"{answering}{store}" if store.startswith("/") else store))


def test_a_study_that_runs_names_a_store_that_refuses_it_and_goes_on(tmp_path, answering, caplog):
    place = Place(tmp_path, f"{answering}/401")
    with caplog.at_level(logging.WARNING), place.tracker() as tracker:
        tracker.open_run(CHILD, name="trial 3").metrics(1, {"fid": 1.0})
        wait_until(lambda: "cannot be used" in caplog.text, 30)
        tracker.close(0)
    assert "401" in caplog.text
    assert place.spool(CHILD).undelivered == 2
