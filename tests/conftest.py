"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from examples import IMAGES, POINTS, STUDY
from filelock import FileLock
from hypothesis import settings
from program import gpm_tune, write_study
from xdist.scheduler.loadfile import LoadFileScheduling

from gpm_tune.study.definition import space

settings.register_profile("shared machine", deadline=None)  # a pause of the machine is no failure
settings.load_profile("shared machine")


FINISHED = "home ?%20#{ü}'s"
CLUSTERS = ("tests/chaos/", "tests/launcher/", "tests/deploy/test_slurm.py")


class OneClusterAtATime(LoadFileScheduling):  # type: ignore[misc]
    """A file's tests run in one process; all that start nodes do in a single one, or they slow each other."""

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if nodeid.startswith(CLUSTERS) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneClusterAtATime:
    """Called by xdist for `--numprocesses`."""
    return OneClusterAtATime(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take longest go first, pages too, whose blocks run studies.

    Else one may be left to one process when the others are done.
    """
    limits: dict[Path, tuple[float, bool]] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        is_slow = item.get_closest_marker("slow") is not None or item.path.suffix == ".md"
        allowed = (float(limit.args[0]) if limit else 0.0, is_slow)
        limits[item.path] = max(limits.get(item.path, allowed), allowed)
    items.sort(key=lambda item: limits[item.path], reverse=True)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """The small study in a file."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the processes that run tests makes for all of them; not to be changed."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    done = folder / "done"
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a small study of images that was run to its end; its file lies beside it.

    Not to be changed. Its name has characters that mean something in URLs, patterns and shells.
    """
    return made_once(tmp_path_factory, "finished", _finish) / FINISHED


def _finish(folder: Path) -> None:
    search = {"model.eta": {"float": [1.0, 4.0]}, "model.sampling_steps": {"int": [2, 4]}}
    path = write_study(folder, name="digits", experiment=space.put(POINTS, IMAGES), search=search)
    result = gpm_tune("run", path, home=folder / FINISHED)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "study digits: 4 complete" in result.stdout
    assert "gpm-tune ui --home" in result.stdout
    assert {file.name for file in folder.iterdir()} == {path.name, FINISHED}, "nothing is outside the home"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place in a bucket of an S3 server on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    urlopen(f"{endpoint}/moto-api/reset", data=b"").close()  # servers of one process have one store
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket/studies"
    server.stop()
