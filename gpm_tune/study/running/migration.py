"""Homes and storages of version 0.1 as those of today: to be deleted once there are none left.

What version 0.1 wrote is neither changed nor deleted. A study's trainings are copied into training runs; then
one transaction notes in Optuna's database which run each trial has, and that the study is of today's format.
Until then it is an old one, and the next attempt goes on with the copies that there are.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from gpm_tune import locations
from gpm_tune.data.fingerprint import described
from gpm_tune.data.fingerprint import digest as old_digest
from gpm_tune.errors import OtherDataError, UserError
from gpm_tune.study.accounts.creation import FORMAT
from gpm_tune.study.accounts.database import read_storage
from gpm_tune.study.accounts.records import read_study, run_user, study_names
from gpm_tune.study.accounts.trained import single_user
from gpm_tune.study.cluster.fetching import take_over
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.running.publishing import publish_study
from gpm_tune.study.storage.home import STUDY_FILES, Home
from gpm_tune.study.storage.locks import hold_study, is_held, only_once
from gpm_tune.study.storage.mirror import snapshot
from gpm_tune.training import Experiment, Objective, checkpoint
from gpm_tune.training.objectives import Measured
from gpm_tune.training.run import EvaluationRecord, TrainingRun, is_whole
from gpm_tune.training.saved import refuse_other_data

OLD_CHECKPOINTS = 3  # their format
MIGRATED = "migrated"  # a file in the folder of an experiment alone that is converted

# What becomes of studies: by the ids of trials in the database, what each has as attributes from now on.
Changes = list[tuple[optuna.Study, dict[int, dict[str, Any]]]]


@dataclass
class Report:
    """What was converted, or would be; what is left out, and what is refused, in sentences."""

    converted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def migrate(home: Home, *, dry_run: bool) -> Report:
    """Convert what version 0.1 left in a home and its storage, or say what would be converted."""
    home.check()
    report, stored = Report(), locations.children(f"{home.storage}/studies") if home.storage else []
    for name in sorted({*study_names(home.optuna_uri), *stored}):
        with _refusals(report.refused):
            if _is_old(name, home):
                _migrate_study(name, home, report, dry_run=dry_run)
    for folder in sorted((home.root / "experiments").glob("*/checkpoints")):
        with _refusals(report.refused):
            if not (folder.parent / MIGRATED).exists():
                _migrate_single(folder.parent, home, report, dry_run=dry_run)
    return report


@contextmanager
def _refusals(refused: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        refused.append(str(error))


@dataclass(frozen=True)
class _Old:
    """A training of version 0.1: of a trial, of an experiment alone, or of a teacher."""

    run: TrainingRun  # that it becomes
    experiment: Experiment
    objective: Objective
    user: str
    checkpoints: list[str]  # newest first
    spool: str = ""  # the folder of what MLflow was to be told

    def convert(self, left_out: list[str]) -> None:
        """Write the training run: evaluations, then checkpoints, as training does, then its user."""
        data = self.experiment.fingerprints["data"]
        with tempfile.TemporaryDirectory() as cache:
            folders = [locations.local(place, Path(cache)) for place in self.checkpoints]
            found = [(folder, record) for folder in folders if (record := self._record(folder))]
            measured = self._measured()
            for folder, record in found:
                refuse_other_data(folder, record, self.experiment.data, data)
                if record.best and (folder / "best.png").exists():  # of a teacher there is no more
                    time = int((folder / "best.png").stat().st_mtime * 1000)
                    best = self._evaluation(record.best.step, time, record.best)
                    measured.setdefault(best.step, (best, (folder / "best.png").read_bytes()))
            for evaluation in measured.values():
                self.run.keep_record(*evaluation)
            for folder, record in found:
                place = self.run.checkpoint(record.step)
                if not is_whole(place):
                    self.run.send_checkpoint(folder, record)
                elif checkpoint.parse_record(locations.read(f"{place}/checkpoint.json"), place) != record:
                    left_out.append(f"{folder} is left out: {place}, of the same training, is there")
        self.run.create(self.experiment, self.user)

    def _record(self, folder: Path) -> checkpoint.Record | None:
        """What is to vouch for a checkpoint from now on; None for one that is damaged."""
        try:
            plain = json.loads((folder / "checkpoint.json").read_bytes())
            if plain["format"] != OLD_CHECKPOINTS:
                raise UserError(f"{folder}: checkpoint format {plain['format']} is older than version 0.1")
            if best := plain["best"]:
                curve, scalars = _curve_of(best["metrics"])
                plain["best"] = {"step": best["step"], "curve": curve, "scalars": scalars}
            plain |= {
                "format": checkpoint.FORMAT,
                "is_end": plain["evaluated_step"] >= self.experiment.training.steps,
                "judge": self.experiment.judge(self.objective),
            }
            return checkpoint.Record.model_validate(plain)
        except (OSError, KeyError, TypeError, ValueError):
            return None

    def _measured(self) -> dict[int, tuple[EvaluationRecord, bytes]]:
        """The evaluations of which the spool has pictures, too; others are made again from a checkpoint."""
        found = {}
        file = f"{self.spool}/events.jsonl"
        for line in locations.read(file).splitlines() if locations.exists(file) else ():
            with suppress(ValueError, KeyError, TypeError, FileNotFoundError):  # it was cut short
                event = json.loads(line)
                if event["kind"] == "metrics":
                    step, metrics = event["payload"]["step"], event["payload"]["values"]
                    picture = locations.read(f"{self.spool}/artifacts/samples/step_{step:07d}.png")
                    curve, scalars = _curve_of(metrics)
                    measured = Measured(curve=curve, scalars=scalars)
                    found[step] = self._evaluation(step, event["time"], measured), picture
        return found

    def _evaluation(self, step: int, time: int, measured: Measured) -> EvaluationRecord:
        judge = self.experiment.judge(self.objective)
        return EvaluationRecord(
            step=step,
            judge=judge,
            time=time,
            machine="unknown",
            user=self.user,
            version="0.1",
            curve=measured.curve,
            scalars=measured.scalars,
        )


def _is_old(name: str, home: Home) -> bool:
    if name in study_names(home.optuna_uri):
        return bool(_old_stages(name, home))
    return not name.endswith(CONFIRMATION) and locations.exists(f"{home.stored(name)}/spool")


def _old_stages(name: str, home: Home) -> list[optuna.Study]:
    """A study and its stage of new seeds, as far as they are there and of version 0.1."""
    storage = read_storage(home.optuna_uri)
    if storage is None:
        return []
    names = optuna.get_all_study_names(storage)
    stages = [stage for stage in (name, name + CONFIRMATION) if stage in names]
    found = [optuna.load_study(study_name=stage, storage=storage) for stage in stages]
    return [s for s in found if "id" in s.user_attrs and "format" not in json.loads(s.user_attrs["identity"])]


def _migrate_study(name: str, home: Home, report: Report, *, dry_run: bool) -> None:
    if is_held(home.study(name)):
        raise UserError(f"study '{name}' is running\nhelp: stop it, with the version that runs it")
    with nullcontext() if dry_run else hold_study(name, home):
        if home.storage and not dry_run:
            _add_requirements(f"{home.stored(name)}")
            take_over(name, home)
        changes: Changes = []
        if not dry_run:
            home.open_runs()
        for stage in _old_stages(name, home):
            changes.append((stage, {}))
            for trial, training in _trainings(stage, home):
                changes[-1][1][trial._trial_id] = _attributes(trial, training)
                for old in (*_teachers(training, home), training) if not dry_run else ():
                    old.convert(report.left_out)
        if not dry_run:
            _add_requirements(str(home.study(name)))
            _note(name, changes, home)
    trials = sum(len(found) for _, found in changes)
    report.converted.append(f"study '{name}', " + (f"{trials} trials" if changes else "from the storage"))
    if home.is_tracked and not dry_run:
        try:
            publish_study(name, home)
        except UserError as error:
            report.left_out.append(f"{error}, or give `gpm-tune resume {name}`")


def _attributes(trial: FrozenTrial, training: _Old) -> dict[str, Any]:
    """What a trial is to have in Optuna's database: its training run, and its best evaluation."""
    found = {"run": training.run.name}
    progress = trial.user_attrs.get("progress", {})
    if not progress.get("best"):
        return found
    best = dict(progress["best"])
    curve, scalars = _curve_of(best.pop("metrics"))
    return found | {"progress": progress | {"best": {**best, "curve": curve, "scalars": scalars}}}


def _curve_of(metrics: Mapping[str, float]) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """A curve, and the scalars, of what version 0.1 named METRIC, METRIC/nfe_N, and other names."""
    curve: dict[int, dict[str, float]] = {}
    for name, value in metrics.items():
        metric, _, nfe = name.partition("/nfe_")
        if nfe.isdecimal():
            curve.setdefault(int(nfe), {})[metric] = value
    known = {"nfe", *(name for values in curve.values() for name in values)}
    return curve, {k: v for k, v in metrics.items() if k not in known and "/nfe_" not in k}


def _trainings(stage: optuna.Study, home: Home) -> Iterator[tuple[FrozenTrial, _Old]]:
    """The trials of a study, each with its training."""
    name = stage.study_name.removesuffix(CONFIRMATION)
    record = read_study(home.optuna_uri, stage.study_name)
    base = Experiment.model_validate(record.experiment)
    if record.data_fingerprint != base.fingerprints["data"]:
        raise OtherDataError(
            f"study '{name}': {described(base.data)} have changed since it began: their fingerprint was "
            f"{record.data_fingerprint}, now it is {base.fingerprints['data']}\nhelp: put the data back"
        )
    trials = {trial.number: trial for trial in stage.get_trials(deepcopy=False)}
    if any("forked_from" in trial.user_attrs for trial in trials.values()):
        raise UserError(
            f"study '{name}': population-based training, whose trials begin within others, is not converted\n"
            "help: finish it with version 0.1, or begin it anew under another name"
        )
    place = f"{home.stored(stage.study_name) or home.study(stage.study_name)}/checkpoints"
    before = next((at for t in trials.values() if (at := t.user_attrs.get("checkpoint"))), None)
    if before and not locations.exists(place):
        raise UserError(
            f"study '{name}': its checkpoints are not in {place}; they were in "
            f"{before.rpartition('/checkpoints/')[0]}/checkpoints\nhelp: give the --storage that the study "
            f"had, or none; where they were deleted, make {place} an empty folder"
        )
    for trial in record.trials:
        try:
            experiment = record.experiment_of(trial)
        except ValidationError:
            continue  # it failed before it was trained
        old = _Old(
            home.runs.of(experiment),
            experiment,
            record.objective,
            run_user(record.id),
            _checkpoints(place, trial.number),
            _spool(name, f"{record.id}/{trial.number:04d}", home),
        )
        if old.checkpoints or locations.exists(f"{old.spool}/events.jsonl"):  # else it was never trained
            yield trials[trial.number], old


def _checkpoints(place: str, number: int) -> list[str]:
    """A trial's checkpoints, newest first: sessions, attempts and checkpoints are numbered as they come."""
    found = []
    for session in filter(lambda folder: folder.startswith("session_"), locations.children(place)):
        for attempt in locations.children(f"{place}/{session}"):
            trial, _, again = attempt.partition(".")
            if trial == f"trial_{number:04d}":
                names = locations.children(f"{place}/{session}/{attempt}")
                found += [
                    (session, int(again or 0), n, attempt) for n in names if n.startswith("checkpoint_")
                ]
    return [
        f"{place}/{session}/{attempt}/{name}" for session, _, name, attempt in sorted(found, reverse=True)
    ]


def _spool(name: str, key: str, home: Home) -> str:
    """The spool of a run: in the home, or else as the storage has it."""
    folder = f"{key.replace('/', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    here, stored = f"{home.study(name)}/spool/{folder}", f"{home.stored(name)}/spool/{folder}"
    return stored if home.storage and not locations.exists(here) else here


def _teachers(of: _Old, home: Home) -> list[_Old]:
    """The teacher that a training follows, where it is given by an experiment and was trained."""
    teacher = of.experiment.teacher
    if teacher is None:
        return []
    later = {"evaluation": {"metrics"}, "model": {"grid", "analytic_first_step"}}  # keys that came later
    plain = teacher.model_dump_json(exclude=later)
    name = f"{hashlib.sha256(plain.encode()).hexdigest()[:12]}-{old_digest(teacher.fingerprints)[:8]}"
    places = [f"{home.cache}/teachers/{name}/checkpoints", f"{home.storage}/teachers/{name}"]
    found = [
        f"{at}/{step}"
        for at in places[: 2 if home.storage else 1]
        for step in reversed(locations.children(at))
    ]
    run, objective = home.runs.of(teacher), teacher.default_objective
    return [_Old(run, teacher, objective, of.user, found)] if found else []


def _add_requirements(folder: str) -> None:
    """Give a study's folder the requirements.txt of its latest process, which its spool has."""
    if locations.exists(f"{folder}/requirements.txt"):
        return
    places = [
        f"{folder}/spool/{run}/artifacts/requirements.txt" for run in locations.children(f"{folder}/spool")
    ]
    texts = [locations.read(place) for place in places if locations.exists(place)]
    locations.write(f"{folder}/requirements.txt", texts[0] if texts else b"")


def _note(name: str, changes: Changes, home: Home) -> None:
    """Say that a study is of today's format: last in the home, which tells what is to be done."""
    database = home.root / "optuna.db"
    if home.storage:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "optuna.db"
            snapshot(database, copy)
            _note_in(copy, changes)
            for file in STUDY_FILES:
                locations.write(f"{home.stored(name)}/{file}", (home.study(name) / file).read_bytes())
            locations.write(f"{home.stored(name)}/optuna.db", copy.read_bytes())
    _note_in(database, changes)


def _note_in(file: Path, changes: Changes) -> None:
    """Without Optuna, which changes no trial that has ended; all at once."""
    with closing(sqlite3.connect(file)) as database, database:
        for stage, trials in changes:
            database.executemany(
                "REPLACE INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
                [(trial, key, json.dumps(v)) for trial, found in trials.items() for key, v in found.items()],
            )
            identity = json.dumps(json.loads(stage.user_attrs["identity"]) | {"format": FORMAT})
            database.execute(
                "UPDATE study_user_attributes SET value_json = ? WHERE study_id = ? AND key = 'identity'",
                (json.dumps(identity), stage._study_id),
            )


def _migrate_single(folder: Path, home: Home, report: Report, *, dry_run: bool) -> None:
    name, checkpoints = folder.name.rsplit("-", 2)[0], sorted(folder.glob("checkpoints/step_*"), reverse=True)
    for place in checkpoints:
        with suppress(OSError, ValueError, KeyError, TypeError):
            experiment = Experiment.model_validate(
                json.loads((place / "checkpoint.json").read_bytes())["experiment"]
            )
            break
    else:
        report.left_out.append(f"{folder} is left out: no checkpoint of this version's experiments is in it")
        return
    with nullcontext() if dry_run else only_once(f"experiment '{name}'", folder):
        spool = next(map(str, folder.glob("spool/*")), "")
        run, objective = home.open_runs().of(experiment), experiment.default_objective
        old = _Old(
            run, experiment, objective, single_user(name, experiment), list(map(str, checkpoints)), spool
        )
        for training in (*_teachers(old, home), old) if not dry_run else ():
            training.convert(report.left_out)
        if not dry_run:
            (folder / MIGRATED).touch()
    report.converted.append(f"experiment '{name}', as {run.name}")
