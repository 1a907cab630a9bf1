"""Tables and exports of what a study has found."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import IMAGES, POINTS, study_of
from rich.console import Console

from gpm_tune.errors import UserError
from gpm_tune.study.accounts.records import StudyRecord, read_study
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.study.views.results import (
    best_plain,
    best_yaml,
    failures,
    studies_table,
    trials_table,
    unlike_gpus,
)
from gpm_tune.training import Experiment, Objective
from gpm_tune.training.objectives import Measured


@pytest.fixture
def record(tmp_path: Path) -> StudyRecord:
    """Two finished trials of images, the second one better, and a failed one."""
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    search = {"model.eta": {"float": [1.0, 4.0]}, "training.optimizer.betas": {"choice": [[0.5, 0.999]]}}
    study = study_of(experiment=space.put(POINTS, IMAGES), search=search)
    manager = TrialManager(study, storage)
    for number, value in enumerate([30.0, 20.0]):
        manager.next()
        manager.report(number, 4, Measured(curve={3: {"fid": value}}, scalars={"seconds": 2.0}))
        manager.complete(number)
    manager.next()
    manager.fail(2, "out of memory")
    return read_study(storage, "small")


def shown(thing: Any) -> str:
    console = Console(record=True, width=140)
    console.print(thing)
    return console.export_text()


def test_the_table_has_the_best_first_and_names_the_features(record: StudyRecord) -> None:
    lines = shown(trials_table(record)).splitlines()
    rows = [line.split() for line in lines if line.split() and line.split()[0].isdigit()]
    assert [row[:2] for row in rows] == [["1", "complete"], ["0", "complete"], ["2", "fail"]]
    assert any("FID (small)" in line for line in lines)
    assert "1 fail, 2 complete" not in lines[0]
    assert "2 complete, 1 fail" in lines[0]
    assert failures(record) == ["trial 2 failed: out of memory"]


def test_in_a_narrow_terminal_costs_give_way_to_values(record: StudyRecord) -> None:
    values = {f"training.optimizer.beta_{number}": 0.123456 + number for number in range(5)}
    trials = [replace(trial, values=values) for trial in record.trials]
    record = replace(record, search=list(values), trials=trials)
    for width, has_costs in ((80, False), (160, True)):
        console = Console(record=True, width=width)
        console.print(trials_table(record))
        text = console.export_text()
        assert ("duration" in text) == has_costs
        assert text.count("4.12") == len(trials)
        assert "…" not in text


def test_the_overview_has_a_line_per_study(record: StudyRecord) -> None:
    text = shown(studies_table([record]))
    assert "20 (trial 1)" in text


def test_the_exported_best_is_the_trials_experiment(record: StudyRecord) -> None:
    best = best_plain(record)
    exported = Experiment.model_validate(yaml.safe_load(best_yaml(record)))
    assert exported == Experiment.model_validate(best["experiment"])
    assert exported.model.eta == best["values"]["model.eta"]
    assert exported.training.optimizer.betas == (0.5, 0.999)
    assert best_yaml(record).startswith("# Trial 1 of study small: FID (small) 20 at step 4, NFE 3.")


def test_what_is_not_there_is_refused_with_a_suggestion(record: StudyRecord, tmp_path: Path) -> None:
    assert record.name == "small"
    with pytest.raises(UserError, match="did you mean 'small'"):
        read_study(f"sqlite:///{tmp_path / 'optuna.db'}", "smal")
    with pytest.raises(UserError, match="there are none yet"):
        read_study(f"sqlite:///{tmp_path / 'nothing.db'}", "smal")
    assert not (tmp_path / "nothing.db").exists()


@pytest.mark.parametrize(
    ("metric", "gpus", "expected"),
    [
        ("seconds", ("L4", "A10G"), ["trials ran on A10G and L4: their seconds cannot be compared"]),
        (
            "steps_per_second",
            ("L4", "A10G"),
            ["trials ran on A10G and L4: their steps_per_second cannot be compared"],
        ),
        ("seconds", ("L4", "L4"), []),
        ("fid", ("L4", "A10G"), []),
    ],
)
def test_times_of_unlike_gpus_are_not_compared_in_silence(
    record: StudyRecord, metric: str, gpus: tuple[str, str], expected: list[str]
) -> None:
    trials = [replace(trial, gpus=[gpu]) for trial, gpu in zip(record.trials[:2], gpus, strict=True)]
    assert unlike_gpus(replace(record, trials=trials, objectives=[Objective(metric=metric)])) == expected
