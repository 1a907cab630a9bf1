"""`gpm-tune train` on a training run that is there: trained no further than asked, measured as asked."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from examples import MODELS, experiment_of
from rich.console import Console

from gpm_tune.study.running.single import Trained, train
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment


def train_in(home: Home, experiment: Experiment) -> tuple[Trained, str]:
    """The result, and what was said."""
    said = io.StringIO()
    return train(experiment, "one", home, "cpu", Console(file=said, width=400)), said.getvalue()


def test_trained_again_longer_and_measured_otherwise_it_is_one_training_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = experiment_of(model=MODELS["edm"])  # evaluated at steps 4, 8 and 12
    longer = experiment_of(model=MODELS["edm"], training__steps=16)
    otherwise = experiment_of(model=MODELS["edm"], training__steps=16, evaluation__samples=100)
    first, said = train_in(home, experiment)
    assert said.startswith("step 4/12: ")
    assert train_in(home, experiment) == (first, f"trained already, in {first.folder}\n")
    more, said = train_in(home, longer)
    assert said.startswith(f"continuing at step 12, in {first.folder}\nstep 16/16: ")
    assert more.step == 16
    judged, said = train_in(home, otherwise)
    assert said.startswith(f"trained already, in {first.folder}\nstep ")
    assert said.splitlines()[-1].startswith("step 16/16: ")
    assert first.folder == more.folder == judged.folder
    assert home.runs.names() == [Path(first.folder).name]

    client = home.mlflow()
    tracked = client.get_experiment_by_name("one")
    assert tracked is not None
    runs = client.search_runs([tracked.experiment_id])
    found = {(run.data.params["training.steps"], run.data.params["evaluation.samples"]) for run in runs}
    assert len(found) == len(runs) == 3, "its parameters never change"
    assert {run.data.tags["gpm.state"] for run in runs} == {"complete"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
