"""A cluster without nodes for trials: a study's trials make Ray's autoscaler start some, and end them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from autoscaling import NODE_TYPES, Autoscaling, autoscaling
from examples import POINTS
from processes import Driver
from program import gpm_tune, write_study

from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.definition import space
from gpm_tune.study.storage.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
SHORT = space.put(POINTS, {"training.steps": 600, "evaluation.every": 200, "evaluation.nfe": []})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Autoscaling]:
    with autoscaling(FAKE) as cluster:
        yield cluster


def write(folder: Path, name: str, trials: int) -> Path:
    (folder / name).mkdir()
    budget, resources = {"trials": trials}, {"cpu": 1}
    return write_study(folder / name, name=name, experiment=SHORT, budget=budget, resources=resources)


def test_a_fresh_cluster_is_sound_and_has_room(cluster: Autoscaling, tmp_path: Path) -> None:
    study = write(tmp_path, "fresh", trials=4)
    result = gpm_tune("doctor", study, "--address", cluster.address, home=tmp_path / "home")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "it starts nodes when trials wait, 2 in all: up to 2 spot" in result.stdout
    assert "a trial takes 1 CPU and 0 GPU; 2 can run at a time" in result.stdout
    assert cluster.workers() == 0, "to look costs nothing"


def test_a_trial_that_no_node_could_hold_is_refused_before_any_is_started(
    cluster: Autoscaling, tmp_path: Path
) -> None:
    study = write(tmp_path, "large", trials=1)
    result = gpm_tune(
        "run", study, "--address", cluster.address, "--set", "resources.cpu=2", home=tmp_path / "home"
    )
    assert result.returncode == 2, result.stdout
    assert "a trial asks for 2 CPU cores, the Ray cluster has 1 on one node" in result.stderr
    assert cluster.workers() == 0


def test_a_plan_starts_a_node_to_measure_on(cluster: Autoscaling, tmp_path: Path) -> None:
    study = write(tmp_path, "planned", trials=4)
    result = gpm_tune("plan", study, "--address", cluster.address, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    assert "2 at a time" in result.stdout
    assert "nodes, US$" in result.stdout
    cluster.wait_for_workers(0)


def test_two_studies_grow_a_cluster_from_nothing_and_leave_nothing(
    cluster: Autoscaling, tmp_path: Path
) -> None:
    first, second = write(tmp_path, "first", trials=3), write(tmp_path, "second", trials=1)
    home = tmp_path / "home"
    drivers = [Driver(study, home, "--address", cluster.address) for study in (first, second)]
    try:
        drivers[0].start()
        drivers[0].wait_for(lambda: cluster.workers() == 2)
        drivers[0].wait_for(lambda: drivers[0].evaluations)
        drivers[1].start()
        for driver in drivers:
            driver.finish(seconds=300)
    finally:
        for driver in drivers:
            driver.clear()
    for name, trials in (("first", 3), ("second", 1)):
        record = read_study(Home(home).optuna_uri, name)
        assert [trial.state for trial in record.trials] == ["complete"] * trials
        assert record.dollars is not None
        assert 0 < record.dollars <= record.hours * 1.001  # of two nodes, half a dollar an hour each
    assert "US$" in gpm_tune("status", "first", home=home).stdout
    cluster.wait_for_workers(0)
    assert "Removing 2 nodes of type spot (idle)" in cluster.monitor or cluster.monitor.count("(idle)") >= 2


def test_a_type_that_cannot_be_had_is_said_and_the_next_one_is_started(tmp_path: Path) -> None:
    study = write(tmp_path, "second_choice", trials=1)
    scarce = {**NODE_TYPES["spot"], "priority": 1}
    with autoscaling("refusing.Provider", available_node_types={**NODE_TYPES, "scarce": scarce}) as cluster:
        result = gpm_tune("run", study, "--address", cluster.address, home=tmp_path / "home")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the cluster cannot start scarce: the cloud has none. help: wait" in result.stderr
    assert "the cluster is starting spot" in result.stderr
    assert "study second_choice: 1 complete" in result.stdout
