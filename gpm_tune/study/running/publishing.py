"""What MLflow is to show of a study, read from the records whenever it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.files import is_plain
from gpm_tune.study.accounts.records import StudyReader, StudyRecord, TrialRecord
from gpm_tune.study.accounts.trained import evaluations_of
from gpm_tune.study.definition.specification import CONFIRMATION
from gpm_tune.study.storage.home import STUDY_FILES, Home
from gpm_tune.study.tracking.publisher import Publisher
from gpm_tune.study.tracking.views import View, study_view, trial_key, trial_view
from gpm_tune.training import Experiment
from gpm_tune.training.run import EvaluationRecord, TrainingRun

DELIVERY_SECONDS = 600.0  # for MLflow to take what was fetched

Content = Callable[[], bytes]


class StudyViews:
    """The views of a study, its trials, and those of its stage of new seeds."""

    def __init__(self, home: Home, name: str, *, is_running: bool) -> None:
        self.is_running = is_running
        self._home = home
        self._name = name
        self._reader = StudyReader(home.optuna_uri, name)
        self._changed = threading.Event()
        self._changed.set()
        self._records: dict[str, StudyRecord] = {}  # by the ids of the stages
        self._experiments: dict[str, Experiment] = {}
        self._runs: dict[str, TrainingRun] = {}

    def publisher(self) -> Publisher:
        """Publishes them."""
        home = self._home
        return Publisher(home.tracking_uri, self._name, self, home.artifact_root)

    def keys(self) -> Iterator[str]:
        """Of all runs that there are to be."""
        for record in self._read().values():
            yield record.id
            yield from (trial_key(record, trial.number) for trial in record.trials)

    def forget(self) -> None:
        """Say that the records have changed."""
        self._changed.set()

    def __call__(self, key: str) -> View | None:
        """The view of a key; None where the records have nothing of it. Raises what their reading raises."""
        identifier, _, number = key.partition("/")
        record = self._read().get(identifier)
        if record is None:
            return None
        if not number:
            return self._of_study(record)
        trial = next((trial for trial in record.trials if trial.number == int(number)), None)
        return None if trial is None else self._of_trial(record, trial)

    def _read(self) -> dict[str, StudyRecord]:
        if self._changed.is_set():
            self._changed.clear()
            try:
                self._records = {record.id: record for record in self._reader.read()}
            except Exception:
                self._changed.set()
                raise
        return self._records

    def _of_study(self, record: StudyRecord) -> View | None:
        folder = self._home.study(self._name)
        return study_view(
            record,
            Experiment.model_validate(record.experiment),
            is_running=self.is_running,
            environment=record.environment,
            files={
                name: (folder / name).read_bytes for name in STUDY_FILES if is_plain(folder / name, folder)
            },
        )

    def _of_trial(self, record: StudyRecord, trial: TrialRecord) -> View | None:
        """None for one whose values are not complete yet, or make no experiment."""
        experiment = self._experiment(record, trial) if trial.is_drawn else None
        if experiment is None:
            return None
        run = self._run(trial)
        if run is not None:
            self._home.runs.check()
        evaluations = [] if run is None else evaluations_of(record, trial, experiment, run)
        files = {} if run is None else dict(pictures(run, evaluations))
        weights = _checkpoint(run, experiment, trial) if run and self._is_model(record, trial) else {}
        return trial_view(
            record, trial, experiment, evaluations, files | weights, is_registered=bool(weights)
        )

    def _is_model(self, record: StudyRecord, trial: TrialRecord) -> bool:
        """Tell whether a trial's best weights are the study's model: of the best, once all have ended."""
        is_over = all(trial.state not in ("running", "interrupted") for trial in record.trials)
        is_chosen = is_over and not self.is_running and not record.name.endswith(CONFIRMATION)
        return is_chosen and record.ranked()[:1] == [trial]

    def _experiment(self, record: StudyRecord, trial: TrialRecord) -> Experiment | None:
        key = trial_key(record, trial.number)
        if key not in self._experiments:
            try:
                self._experiments[key] = record.experiment_of(trial)
            except ValidationError:
                return None
        return self._experiments[key]

    def _run(self, trial: TrialRecord) -> TrainingRun | None:
        """A trial's training run, whose evaluations are read once."""
        if trial.run is None:
            return None
        return self._runs.setdefault(trial.run, self._home.runs.named(trial.run))


def pictures(run: TrainingRun, evaluations: list[EvaluationRecord]) -> Iterator[tuple[str, Content]]:
    """The samples of evaluations: the path of each as an artifact, and what reads it."""
    for evaluation in evaluations:
        place = run.picture(evaluation.step, evaluation.judge)
        yield f"samples/step_{evaluation.step:07d}.png", partial(locations.read, place)


def _checkpoint(run: TrainingRun, experiment: Experiment, trial: TrialRecord) -> dict[str, Content]:
    """The files of the checkpoint with a trial's best weights; none where it is no longer kept."""
    try:
        folder = run.saved(experiment, trial.best_step).folder
    except UserError:
        return {}
    return {f"checkpoint/{file.name}": file.read_bytes for file in sorted(Path(folder).glob("[!.]*.*"))}


def publish_study(name: str, home: Home) -> None:
    """Give MLflow all that a home has of a study. Raises UserError where that does not take everything."""
    views = StudyViews(home, name, is_running=False)
    with views.publisher() as publisher:
        publisher.touch(*views.keys())
        left = publisher.close(DELIVERY_SECONDS)
    if left:
        raise UserError(f"{left} runs of study '{name}' are not in {home.tracking_uri} yet; fetch it again")
