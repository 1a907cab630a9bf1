"""Bad input ends in a message: thousands of mutated study files, and values of `--set`.

Each makes a study that can be begun, or a UserError whose every line says where and what. A fixed choice of
them is tried here; GPM_TUNE_FUZZ=50000 tries so many, drawn anew.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from mutations import ASSIGNMENTS, TEXTS, mutated_files

from gpm_tune.cli import main
from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition.specification import StudyConfig, load_experiment, load_study
from gpm_tune.training.description import build_empty

WANTED = int(os.environ.get("GPM_TUNE_FUZZ", "0"))
MOST_SECONDS = 10.0  # of computing, for one file: beyond it hangs
LONGEST_LINE = 1000


def budget(examples: int) -> settings:
    """So many examples, always the same; or as many as are asked for, drawn anew."""
    return settings(
        max_examples=WANTED or examples,
        derandomize=not WANTED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=None if WANTED else [Phase.generate, Phase.shrink],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of its own to be in, in which nothing may be written."""
    path, before = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    os.chdir(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield path
    os.chdir(before)


@budget(400)
@given(data=mutated_files)
def test_a_mutated_file_is_a_study_or_a_message(folder: Path, data: bytes) -> None:
    path = folder / "study.yaml"
    path.write_bytes(data)
    judge(path, [])


@budget(200)
@given(
    text=st.sampled_from(sorted(TEXTS.values())), assignments=st.lists(ASSIGNMENTS, min_size=1, max_size=2)
)
def test_what_is_set_on_the_command_line_is_too(folder: Path, text: str, assignments: list[str]) -> None:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    judge(path, assignments)


def judge(path: Path, assignments: list[str]) -> None:
    """What must hold of any study file, with assignments of the command line."""
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check_study(load(path, assignments))
        except UserError as error:
            check_message(str(error), path)
    assert time.process_time() - started < MOST_SECONDS
    assert list(path.parent.iterdir()) == [path], "something was written"


def load(path: Path, assignments: list[str]) -> StudyConfig:
    document = Document.load(path)
    for assignment in assignments:
        document.set(assignment)
    return load_study(document)


def check_message(message: str, path: Path) -> None:
    """Every line says where, and what."""
    lines = message.split("\n")
    assert len(set(lines)) == len(lines)
    for line in lines:
        where, _, what = line.partition(": ")
        assert where.startswith((str(path), "--set ")) or ".yaml" in where, line
        assert what
        assert line.isprintable()
        assert len(line) < LONGEST_LINE


def check_study(study: StudyConfig) -> None:
    """It can be stored and read again, its networks can be built, and its first trial can be asked."""
    json.dumps(study.model_dump(mode="json"), allow_nan=False)
    assert StudyConfig.model_validate(study.model_dump(mode="json")) == study
    assert StudyConfig.model_validate_json(study.model_dump_json()) == study
    build_empty(study.experiment)
    assert 0 < study.scheduler.usual_share(study.experiment.training.steps) <= 1
    begin(study)


def begin(study: StudyConfig) -> None:
    """Ask for the first trial, as a run does."""
    known = [start for start in study.start_from if start == "base" or isinstance(start, dict)]
    budget = study.budget.model_copy(update={"trials": 2})  # each may turn out to be out of bounds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        manager = TrialManager(study.model_copy(update={"start_from": known, "budget": budget}), None)
    first = manager.next()
    if first is not None:
        assert all(study.search[path].contains(value) for path, value in first.values.items())


COMMANDS = {
    "run": ["--home", "home"],
    "run, dry": ["--dry-run", "--home", "home"],
    "plan": ["--home", "home"],
    "train": ["--home", "home"],
    "describe": ["--json"],
}


@budget(60)
@given(data=mutated_files, command=st.sampled_from(sorted(COMMANDS)))
def test_the_program_ends_with_the_message_and_starts_nothing(
    folder: Path, data: bytes, command: str
) -> None:
    path = folder / "study.yaml"
    path.write_bytes(data)
    assume(is_refused(path))
    code, errors = run_program(command.split(",")[0], str(path), *COMMANDS[command])
    assert code == 2
    assert errors
    assert all(line.startswith("error: ") for line in errors.splitlines()), errors
    assert list(folder.iterdir()) == [path], "something was written"


def is_refused(path: Path) -> bool:
    try:
        load_experiment(Document.load(path))
    except UserError:
        return True
    return False


def run_program(*arguments: str) -> tuple[int, str]:
    """The program's exit code and what it says on stderr, without a process of its own."""
    errors, before = io.StringIO(), sys.argv
    sys.argv = ["gpm-tune", *arguments]
    try:
        with redirect_stderr(errors), redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = before
    return int(end.value.code or 0), errors.getvalue()
