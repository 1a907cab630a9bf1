"""Studies brought from a storage, or a cluster, into a home: as if they had been run there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import TrialState

from gpm_tune.errors import UserError
from gpm_tune.study import shared_storage
from gpm_tune.study.guards import only_once
from gpm_tune.study.home import Home
from gpm_tune.study.records import StudyRecord, read_study, study_names
from gpm_tune.study.specification import CONFIRMATION
from gpm_tune.study.tracking import Tracker

Get = Callable[[str, Path], None]
"""Copies what lies at a path below a storage's studies/ to a local path. Raises OSError where it cannot."""


def from_storage(storage: str) -> Get:
    """Studies as they lie in a storage."""

    def get(path: str, to: Path) -> None:
        source = f"{storage}/studies/{path}"
        if Path(path).suffix:
            to.write_bytes(shared_storage.read(source))
        else:
            shared_storage.copy(source, str(to))

    return get


def fetch(name: str, home: Home, get: Get, *, checkpoints: str) -> StudyRecord:
    """Bring a study here: its trials, what was tracked, and `best`, `all` or `none` of its checkpoints.

    Fetched again it is brought up to date. Raises UserError where there is no such study, the home has
    another one of this name, or has trained more of it.
    """
    with tempfile.TemporaryDirectory() as folder, only_once(f"study '{name}'", home.study(name)):
        database = Path(folder) / "optuna.db"
        try:
            get(f"{name}/optuna.db", database)
        except OSError as error:
            raise UserError(f"study '{name}' cannot be fetched: {error}") from None
        source = f"sqlite:///{database}"
        found = read_study(source, name)
        _refuse_loss(found, home)
        target = home.study(name)
        (target / "study.yaml").unlink(missing_ok=True)
        shutil.rmtree(target / "spool", ignore_errors=True)
        get(f"{name}/study.yaml", target / "study.yaml")
        get(f"{name}/spool", target / "spool")
        _copy_trials(source, name, home, get, _chosen(found, checkpoints))
        # What was delivered was delivered elsewhere: here everything is new.
        with Tracker(target / "spool", home.tracking_uri, name, home.artifact_root):
            pass
    return read_study(home.optuna_uri, name)


def _refuse_loss(found: StudyRecord, home: Home) -> None:
    """Raise UserError where the home has something that the fetched study would replace for good."""
    if found.name not in study_names(home.optuna_uri):
        return
    here = read_study(home.optuna_uri, found.name)
    if here.id != found.id:
        raise UserError(
            f"{home.root} has another study named '{found.name}'; fetch into another folder (--home), or "
            f"delete it: gpm-tune delete {found.name}"
        )
    if _trained(here) > _trained(found):
        raise UserError(
            f"{home.root} has more of study '{found.name}' than is to be fetched: it was continued here"
        )


def _trained(record: StudyRecord) -> int:
    return sum(trial.step for trial in record.trials)


def _chosen(record: StudyRecord, checkpoints: str) -> set[int]:
    """The numbers of the trials whose checkpoints are wanted."""
    if checkpoints == "all":
        return {trial.number for trial in record.trials}
    return {trial.number for trial in record.ranked()[:1]} if checkpoints == "best" else set()


def _copy_trials(source: str, name: str, home: Home, get: Get, chosen: set[int]) -> None:
    """The studies of both stages, with the checkpoints of the chosen trials of the search."""
    present = optuna.get_all_study_names(source)
    for stage in (name, name + CONFIRMATION):
        if stage not in present:
            continue
        old = optuna.load_study(study_name=stage, storage=source)
        trials = old.get_trials()
        for trial in trials if stage == name else ():
            location = trial.user_attrs.get("checkpoint")
            if location and trial.number in chosen:
                trial.user_attrs["checkpoint"] = str(_get_checkpoint(location, name, home, get))
        if stage in optuna.get_all_study_names(home.optuna_uri):
            optuna.delete_study(study_name=stage, storage=home.optuna_uri)
        new = optuna.create_study(study_name=stage, storage=home.optuna_uri, directions=old.directions)
        for key, value in old.user_attrs.items():
            new.set_user_attr(key, value)
        new.add_trials(trials)
        running = [trial for trial in new.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        for trial in running:  # what runs it is elsewhere
            optuna.Trial(new, trial._trial_id).set_user_attr("interrupted", True)


def _get_checkpoint(location: str, name: str, home: Home, get: Get) -> Path:
    path = f"checkpoints/{location.rpartition('/checkpoints/')[2]}"
    place = home.study(name) / path
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        get(f"{name}/{path}", place)
    return place
