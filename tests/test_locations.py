"""Studies in a storage that outlives the machine that ran them: a folder, and a bucket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from examples import POINTS, study_of

from mlflow.tracking import MlflowClient
from program import COMMAND, write_study

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.ledger import Ledger
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.cluster.fetching import fetch, from_storage
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.mirror import Mirror
from gpm_tune.training.checkpoint import VOUCHED

PLANTED = {  # secrets that a user has around a study
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYID0000000A",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key-b",
    "AWS_SESSION_TOKEN": "planted-session-token-c",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-d",
    "MLFLOW_TRACKING_TOKEN": "planted-bearer-e",
}
ALONE = {"cpu": 1, "concurrent": 1}
BESIDES_LOGS = shutil.ignore_patterns("sockets", "token")  # in Ray's folder
LONG = space.put(POINTS, {"training.steps": 4000, "evaluation.every": 500, "evaluation.nfe": []})


def run(
    study: Path,
    home: Path,
    *arguments: str,
    interrupt_after: str | None = None,
    before: Callable[[], object] = lambda: None,
) -> subprocess.Popen[str]:
    """`gpm-tune run` to its end, or to a Ctrl-C once it has printed something; its output is in `args`.

    before: is called before the Ctrl-C.
    """
    command = [*COMMAND, "run", str(study), "--home", str(home), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if interrupt_after and interrupt_after in line:
            before()
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    process.wait(60)
    process.args = "".join(lines)
    return process


@pytest.mark.slow
def test_a_study_goes_on_elsewhere_from_its_bucket_and_shows_no_secret(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = Path("/tmp") / f"ray-{os.getpid()}"  # short: sockets lie there
    logs.mkdir(mode=0o700)
    for name, value in {**PLANTED, "RAY_TMPDIR": str(logs)}.items():
        monkeypatch.setenv(name, value)
    path = write_study(tmp_path, name="far", experiment=LONG, budget={"trials": 2}, resources=ALONE)
    first = run(
        path,
        tmp_path / "one",
        "--storage",
        bucket,
        interrupt_after="trial 0: step 1500/",
        before=lambda: shutil.copytree(logs, tmp_path / "logs", symlinks=True, ignore=BESIDES_LOGS),
    )
    assert first.returncode == 130, first.args
    second = run(path, tmp_path / "two", "--storage", bucket)
    assert second.returncode == 0, second.args
    assert "trial 0: step 500/" not in second.args, "it did not begin again"
    record = read_study(Home(tmp_path / "two").optuna_uri, "far")
    assert [trial.state for trial in record.trials] == ["complete", "complete"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'two' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("far")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 3
    for child in (child for child in runs if "gpm.trial" in child.data.tags):
        history = client.get_metric_history(child.info.run_id, "sliced_wasserstein")
        assert [point.step for point in history] == list(range(500, 4001, 500))
    places = {trial.checkpoint for trial in record.trials}
    assert all(str(place).startswith(f"{bucket}/studies/far/checkpoints/session_") for place in places)
    assert list(logs.iterdir()) == [], "Ray's logs end with it"
    logs.rmdir()
    locations.copy(bucket, str(tmp_path / "bucket"))
    (tmp_path / "output.txt").write_text(str(first.args) + str(second.args))
    refuse_secrets(tmp_path)


def refuse_secrets(folder: Path) -> None:
    """Fail where a file, whatever it is, has one of the planted values."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"optuna.db", "mlflow.db", "output.txt", "tuner.pkl", "gcs_server.out"} <= {f.name for f in files}
    for file in files:
        content = file.read_bytes()
        found = [name for name, value in PLANTED.items() if value.encode() in content]
        assert not found, f"{file.relative_to(folder)} has {found}"


def make_study(home: Home, evaluations: int) -> str:
    """A study in a home that has a storage, with a trial that runs; its checkpoint's location."""
    study = study_of(name="made")
    home.root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(study, home.optuna_uri, home.checkpoints("made"))
    assignment = ledger.next()
    assert assignment is not None
    for step in range(1, evaluations + 1):
        ledger.report(assignment.number, step, {"sliced_wasserstein": 1 / step, "seconds": 1.0, "nfe": 4.0})
    location = f"{home.checkpoints('made')}/session_000/trial_0000/checkpoint_000001"
    ledger.keep_checkpoint(assignment.number, location)
    locations.write(f"{location}/checkpoint.json", json.dumps({"step": evaluations}).encode())
    folder = home.study("made")
    (folder / "spool" / "a").mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text("name: made\n")
    (folder / "spool" / "a" / "events.jsonl").touch()
    return location


@pytest.fixture
def cluster_home(tmp_path: Path) -> Home:
    return Home(tmp_path / "head", storage=str(tmp_path / "storage"))


def test_what_is_mirrored_is_fetched_whole(tmp_path: Path, cluster_home: Home) -> None:
    location = make_study(cluster_home, evaluations=3)
    with Mirror(cluster_home, "made"):
        pass
    here, get = Home(tmp_path / "laptop"), from_storage(str(cluster_home.storage))
    fetched = fetch("made", here, get, checkpoints="best")
    original = read_study(cluster_home.optuna_uri, "made")
    (trial,), (before,) = fetched.trials, original.trials
    assert (fetched.id, trial.values, trial.scores, trial.step) == (
        original.id,
        before.values,
        before.scores,
        before.step,
    )
    assert (before.state, trial.state) == ("running", "interrupted")
    assert trial.checkpoint == location.replace(str(cluster_home.storage), str(here.root))
    assert (Path(trial.checkpoint) / "checkpoint.json").is_file()
    assert fetch("made", here, get, checkpoints="none").trials[0].checkpoint == location, (
        "again, brought up to date"
    )


def test_links_are_neither_mirrored_nor_fetched(tmp_path: Path, cluster_home: Home) -> None:
    make_study(cluster_home, evaluations=1)
    planted, spool = tmp_path / "planted", cluster_home.study("made") / "spool" / "a"
    planted.write_text("a file of mine")
    (spool / "artifacts").mkdir()
    (spool / "artifacts" / "link.txt").symlink_to(planted)
    with Mirror(cluster_home, "made"):
        pass
    stored = Path(f"{cluster_home.storage}/studies/made/spool/a")
    assert (stored / "events.jsonl").is_file()
    assert not (stored / "artifacts").exists()

    def with_a_link(path: str, to: Path) -> None:
        """As rsync brings it from a cluster."""
        from_storage(str(cluster_home.storage))(path, to)
        if path.endswith("spool"):
            (to / "a" / "artifacts").mkdir()
            (to / "a" / "artifacts" / "link.txt").symlink_to(planted)
            (to / "b").symlink_to(tmp_path)

    here = Home(tmp_path / "laptop")
    fetch("made", here, with_a_link, checkpoints="none")
    assert (here.study("made") / "study.yaml").is_file()
    assert [file.name for file in (here.study("made") / "spool").rglob("*")] == ["a", "events.jsonl"]


def test_nothing_is_fetched_over_more_than_is_there(tmp_path: Path, cluster_home: Home) -> None:
    make_study(cluster_home, evaluations=2)
    with Mirror(cluster_home, "made"):
        pass
    get = from_storage(str(cluster_home.storage))
    other = Home(tmp_path / "other", storage=str(tmp_path / "elsewhere"))
    make_study(other, evaluations=1)
    with pytest.raises(UserError, match="another study named 'made'"):
        fetch("made", other, get, checkpoints="none")
    here = Home(tmp_path / "laptop")
    fetch("made", here, get, checkpoints="none")
    ledger = Ledger(study_of(name="made"), here.optuna_uri)
    assignment = ledger.next()
    assert assignment is not None
    ledger.report(assignment.number, 3, {"sliced_wasserstein": 0.1, "seconds": 1.0, "nfe": 4.0})
    with pytest.raises(UserError, match="continued here"):
        fetch("made", here, get, checkpoints="none")
    with pytest.raises(UserError, match="study 'unknown' cannot be fetched"):
        fetch("unknown", here, get, checkpoints="none")


def test_a_mirror_survives_a_storage_that_is_away(
    cluster_home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpm_tune.study.storage.mirror.PUSH_EVERY", 0.05)
    make_study(cluster_home, evaluations=1)
    storage = Path(str(cluster_home.storage))
    aside = storage.with_name("aside")
    with Mirror(cluster_home, "made"):
        storage.rename(aside)
        storage.touch()  # a file in the folder's place: even root cannot write there
        wait_for(lambda: "is away" in caplog.text)
        storage.unlink()
        aside.rename(storage)
        wait_for(lambda: "is back" in caplog.text)
    assert caplog.text.count("is away") == 1
    assert (storage / "studies" / "made" / "optuna.db").is_file()


def wait_for(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_bucket_keeps_the_last_two_whole_checkpoints_of_a_trial(bucket: str) -> None:
    base = f"{bucket}/studies/made/checkpoints"
    places = [f"{base}/session_00{n // 3}_ab/trial_0007/checkpoint_00000{n}" for n in range(6)]
    for place in places:
        for name in ["checkpoint.json", *VOUCHED] if place != places[4] else ["state.pt"]:
            locations.write(f"{place}/{name}", b"{}")
    neighbour = f"{base}/session_000/trial_0008/checkpoint_000000"
    locations.write(f"{neighbour}/checkpoint.json", b"{}")
    assert candidates(places[3]) == [places[3], places[2], places[1], places[0], places[4], places[5]]
    drop_old(places[5])
    assert [locations.exists(place) for place in places] == [False, False, False, True, True, True]
    assert locations.exists(neighbour)


def test_what_is_no_storage_is_said() -> None:
    with pytest.raises(UserError, match=r"storage ftp://host/x: .* Give s3://BUCKET/PREFIX"):
        locations.exists("ftp://host/x")


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_files_come_back_as_they_were_written(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = str(tmp_path / "shared") if kind == "folder" else request.getfixturevalue("bucket")
    locations.write(f"{root}/a/b/one.bin", b"\x00one")
    locations.write(f"{root}/a/two.bin", b"two")
    assert locations.read(f"{root}/a/b/one.bin") == b"\x00one"
    assert locations.children(f"{root}/a") == ["b", "two.bin"]
    assert locations.children(f"{root}/nothing") == []
    locations.copy(f"{root}/a", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "b" / "one.bin").read_bytes() == b"\x00one"
    local = locations.local(f"{root}/a", tmp_path / "cache")
    assert (local / "two.bin").read_bytes() == b"two"
    locations.delete(f"{root}/a")
    assert not locations.exists(f"{root}/a/two.bin")
    locations.delete(f"{root}/a")  # again, it changes nothing
