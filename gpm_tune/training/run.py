"""A training run: one training and all that it left behind, in one folder of a home or a bucket.

runs/edm-mnist-1a2b3c4d5e6f/
  experiment.yaml       what is trained; its digest, with the data's, is a part of the folder's name
  evaluations/step_…    a JSON object each: what was measured at a step, and by which judge
  checkpoints/step_…    states of the one trajectory: the newest few, and where trainings came to their end
  samples/step_….png
  users/                a file for each study, or single experiment, that needs the run: what it asked for
  lease.json            who writes here now

A judge is how samples are made and measured, and the objective by which the best weights are chosen.
Trainings that differ only in their judge, or in how long they go on, share a folder: see `loop.Training`.
"""

from __future__ import annotations

import logging
import math
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeInt, ValidationError

from gpm_tune import locations
from gpm_tune.data.fingerprint import described
from gpm_tune.documents import as_yaml
from gpm_tune.errors import UserError
from gpm_tune.training import checkpoint
from gpm_tune.training.checkpoint import Record
from gpm_tune.training.experiment import DATA_DIGITS, Experiment, digest
from gpm_tune.training.objectives import Measured, Objective
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.trainer import Evaluation, Trainer
from gpm_tune.version import __version__

KEPT = 2  # of the newest checkpoints, besides those at the end of a training

_STEP = re.compile(r"step_\d{9,}")
_log = logging.getLogger("gpm_tune")


class EvaluationRecord(Measured):
    """What was measured at a step, as the run's folder keeps it."""

    step: NonNegativeInt
    judge: str
    time: int  # milliseconds since 1970
    machine: str
    user: str  # for whom it was measured, as `users/` has it
    version: str  # of the program


@dataclass(frozen=True)
class Runs:
    """Where training runs are kept; cache: a folder of this machine, for copies of what is in a bucket."""

    location: str
    cache: Path

    def check(self) -> None:
        """Raise FileNotFoundError where the folder is not there: it may be on a disk that is away.

        Nothing is read or written there before, or it would be taken for a new one.
        """
        if not (locations.is_bucket(self.location) or locations.exists(self.location)):
            raise FileNotFoundError(f"{self.location} is not there")

    def of(self, experiment: Experiment) -> TrainingRun:
        """The run of an experiment. Raises UserError where its data cannot be had."""
        return self.named(experiment.run_name)

    def alone(self, experiment: Experiment) -> TrainingRun:
        """A run of an experiment that is shared with none of another judge, or another length."""
        shared = experiment.run_name
        end = digest([shared, experiment.judge(), experiment.training.steps], 12)
        return self.named(f"{shared.rpartition('-')[0]}-{end}")

    def forked(self, donor: str, step: int, why: str) -> TrainingRun:
        """The run that leaves another one at a step, to go on with other values.

        why: of several that leave it there each has its own. Raises UserError where the other one has no such
        checkpoint any more, OSError where the place is away.
        """
        run = self.named(f"{donor.rpartition('-')[0]}-{digest([donor, step, why], 12)}")
        source, place = self.named(donor).checkpoint(step), run.checkpoint(step)
        self.check()
        if not is_whole(place):
            if not is_whole(source):
                raise UserError(f"{source}: no whole checkpoint is here any more")
            locations.copy(source, place)  # the other one goes on, and drops what it no longer needs
        return run

    def named(self, name: str) -> TrainingRun:
        """The run whose folder has this name."""
        return TrainingRun(self, name)

    def names(self) -> list[str]:
        """The folders of all runs."""
        return locations.children(self.location)


class TrainingRun:
    """The folder of a training run. Methods raise OSError where its place is away, or full."""

    def __init__(self, runs: Runs, name: str) -> None:
        self.runs = runs
        self.name = name
        self.location = f"{runs.location}/{name}"
        self._records: dict[str, EvaluationRecord] = {}  # by file: they never change

    def create(self, experiment: Experiment, user: str) -> None:
        """Make the folder, unless it is there, and note who uses it: deletion asks all users.

        Raises OSError where the folder of all runs is not there.
        """
        self.runs.check()
        content = as_yaml(experiment.model_dump(mode="json")).encode()
        for file in ("experiment.yaml", f"users/{user}"):
            if not locations.exists(f"{self.location}/{file}"):
                locations.write(f"{self.location}/{file}", content)

    def users(self) -> list[str]:
        """Who needs the run."""
        return locations.children(f"{self.location}/users")

    def leave(self, user: str) -> None:
        """Delete the run, unless others use it, too."""
        users = self.users()
        if users == [user]:
            locations.delete(self.location)
        elif user in users:
            locations.delete_file(f"{self.location}/users/{user}")

    def evaluations(
        self, judge: str | None = None, *, after: int = -1, up_to: float = math.inf
    ) -> list[EvaluationRecord]:
        """What one judge has measured after a step and up to one, by step; None for all judges."""
        ending = ".json" if judge is None else f"-{judge}.json"
        names = [n for n in locations.children(f"{self.location}/evaluations") if n.endswith(ending)]
        found = [record for record in map(self._read, names) if record and after < record.step <= up_to]
        return sorted(found, key=lambda record: record.step)

    def _read(self, name: str) -> EvaluationRecord | None:
        """The record of a file; None where there is none, or it is damaged: it is measured again then."""
        if name not in self._records:
            place = f"{self.location}/evaluations/{name}"
            if not locations.exists(place):
                return None
            try:
                self._records[name] = EvaluationRecord.model_validate_json(locations.read(place))
            except ValidationError as error:
                _log.warning("%s is damaged: %s", place, error.errors()[0]["msg"])
                return None
        return self._records[name]

    def keep_evaluation(self, evaluation: Evaluation, judge: str, device: str, user: str) -> EvaluationRecord:
        """Write what was measured, and the picture; what is there already stays, and is returned."""
        record = EvaluationRecord(
            step=evaluation.step,
            judge=judge,
            time=time.time_ns() // 1_000_000,
            machine=f"{platform.node()}, {device}",
            user=user,
            version=__version__,
            curve=evaluation.measured.curve,
            scalars=evaluation.measured.scalars,
        )
        return self.keep_record(record, evaluation.picture)

    def keep_record(self, record: EvaluationRecord, picture: bytes) -> EvaluationRecord:
        """Write an evaluation and its picture, a PNG; what is there already stays, and is returned."""
        name = f"{_step(record.step)}-{record.judge}.json"
        before = self._read(name)
        if before:
            return before
        locations.write(self.picture(record.step, record.judge), picture)
        content = record.model_dump_json(indent=2).encode()
        locations.write(f"{self.location}/evaluations/{name}", content)
        self._records[name] = record
        return record

    def picture(self, step: int, judge: str) -> str:
        """Where the samples of an evaluation are, as a PNG."""
        return f"{self.location}/samples/{_step(step)}-{judge}.png"

    def checkpoints(self, up_to: int | None = None) -> list[str]:
        """The checkpoints, up to a step, newest first, damaged ones included."""
        names = filter(_STEP.fullmatch, reversed(locations.children(f"{self.location}/checkpoints")))
        found = [name for name in names if up_to is None or name <= _step(up_to)]
        return [f"{self.location}/checkpoints/{name}" for name in found]

    def checkpoint(self, step: int) -> str:
        """Where the checkpoint of a step is, if there is one."""
        return f"{self.location}/checkpoints/{_step(step)}"

    def newest(self, up_to: int) -> int:
        """The step of the newest whole checkpoint up to a step; -1 where there is none."""
        whole = filter(is_whole, self.checkpoints(up_to))
        return next((int(place.rpartition("_")[2]) for place in whole), -1)

    def data_fingerprint(self) -> str | None:
        """Of the data that were read, by the newest checkpoint that tells; None where there is none."""
        records = map(_record, self.checkpoints())
        return next((record.data for record in records if record), None)

    def is_trained(self, experiment: Experiment, objective: Objective | None = None) -> bool:
        """Tell whether an experiment's training has come to its end here, and was measured there."""
        end, judge = experiment.training.steps, experiment.judge(objective)
        return self._read(f"{_step(end)}-{judge}.json") is not None and self.newest(end) == end

    def keep_checkpoint(self, trainer: Trainer) -> None:
        """Write a checkpoint, and delete those that are no longer needed."""
        place = self.checkpoint(trainer.step)
        if locations.is_bucket(place):
            with tempfile.TemporaryDirectory() as folder:
                trainer.save(Path(folder))
                self.send_checkpoint(Path(folder), checkpoint.read_record(Path(folder)))
        else:
            trainer.save(Path(place))
        self._drop_old(trainer.step)

    def send_checkpoint(self, folder: Path, record: Record) -> None:
        """Copy a checkpoint from a folder of this machine, with this record, which is the last to come."""
        place = self.checkpoint(record.step)
        for name in checkpoint.VOUCHED:
            locations.send(folder / name, f"{place}/{name}")
        _vouch(place, record)

    def keep_end(self, step: int) -> bool:
        """Let a checkpoint be kept as that of a training's end, which a longer one may have written.

        Returns whether that was to be noted.
        """
        place = self.checkpoint(step)
        record = _record(place)
        if record is None or record.is_end:
            return False
        _vouch(place, record.model_copy(update={"is_end": True}))
        return True

    def _drop_old(self, step: int) -> None:
        found = self.checkpoints(step)
        whole = [index for index, place in enumerate(found) if is_whole(place)][:KEPT]
        newest = {record.judge for index in whole if (record := _record(found[index]))}
        for place in found[whole[-1] + 1 :] if len(whole) == KEPT else ():
            record = _record(place)
            if record is None or not (record.is_end or record.judge not in newest):
                locations.delete(place)
            elif not record.is_end:
                newest.add(record.judge)  # no later one has the best weights of this judge

    def here(self, place: str) -> Path:
        """A checkpoint on this machine: itself, or a copy of what is in a bucket."""
        if not locations.is_bucket(place):
            return Path(place)
        copied = locations.copy_of(place, self.runs.cache) / "checkpoint.json"
        if copied.exists() and copied.read_bytes() != locations.read(f"{place}/checkpoint.json"):
            shutil.rmtree(copied.parent)  # it was written again since
        return locations.local(place, self.runs.cache)

    def saved(self, experiment: Experiment, step: int | None = None) -> SavedModel:
        """The trained model of an experiment whose run this is, with the weights of a step.

        step: None for the best weights that there are. A checkpoint that is damaged, or without these
        weights, is passed over for the one before it, with a warning. Raises UserError where there is none.
        """
        found = [self.here(place) for place in self.checkpoints(experiment.training.steps)]
        if not found:
            raise UserError(f"{self.location}: no checkpoint is here")
        return first_sound(found, experiment, step)

    def best(self, experiment: Experiment) -> SavedModel:
        """The trained model of an experiment with the weights that its default objective finds the best.

        They are those of its training alone. Raises UserError where others have trained the run, too, and
        some of its evaluations are not there, or these weights are no longer kept.
        """
        best, steps = self.best_evaluation(experiment), experiment.evaluated_steps
        if best is None or not {found.step for found in self._own(experiment)} >= set(steps):
            raise UserError(f"{self.location}: it was not measured at each of the steps {steps}")
        return self.saved(experiment, best.step)

    def best_evaluation(self, experiment: Experiment) -> EvaluationRecord | None:
        """The evaluation that an experiment's default objective finds the best; None while there is none."""
        objective = experiment.default_objective
        choose = min if objective.mode == "min" else max  # of equal ones the first, as training does
        own = self._own(experiment)
        return choose(own, key=objective.value_of, default=None)

    def _own(self, experiment: Experiment) -> list[EvaluationRecord]:
        """The evaluations that an experiment asks for, of all that the run has."""
        steps = set(experiment.evaluated_steps)
        return [found for found in self.evaluations(experiment.judge()) if found.step in steps]

    def note_of_other_data(self, experiment: Experiment) -> str | None:
        """A sentence where this run, not begun yet, has a sister of the same training on other data."""
        alike = self.name[:-DATA_DIGITS]
        sisters = [name for name in self.runs.names() if name.startswith(alike) and name != self.name]
        if not sisters or locations.exists(self.location):
            return None
        return (
            f"{described(experiment.data)} have changed since {sisters[0]} was trained: it is trained anew, "
            f"in {self.location}"
        )


def first_sound(folders: Iterable[Path], experiment: Experiment | None, step: int | None) -> SavedModel:
    """The model in the first of a run's checkpoints, newest first, that can be loaded and has the weights.

    experiment: None for the checkpoint's own. step: of the weights; None for the best. A warning says what
    was passed over. Raises UserError, that of the newest, where none can be loaded.
    """
    errors: list[UserError] = []
    for folder in folders:
        try:
            found = SavedModel.at(folder, experiment, step)
            found.load()
        except UserError as error:
            errors.append(error)
            continue
        if errors:
            _log.warning("%s; the one before is used: %s", "; ".join(map(str, errors)), folder)
        return found
    raise errors[0] if errors else UserError("no checkpoint is here")


def is_whole(place: str) -> bool:
    """Tell whether all files of a checkpoint are there, at their full size where that costs nothing."""
    if locations.is_bucket(place):  # where a file is whole if it is there
        return {"checkpoint.json", *checkpoint.VOUCHED} <= set(locations.children(place))
    return checkpoint.is_whole(Path(place))


def _record(place: str) -> Record | None:
    try:
        return checkpoint.parse_record(locations.read(f"{place}/checkpoint.json"), place)
    except (OSError, UserError):
        return None


def _vouch(place: str, record: Record) -> None:
    locations.write(f"{place}/checkpoint.json", record.model_dump_json(indent=2).encode())


def _step(step: int) -> str:
    return f"step_{step:09d}"
