"""One experiment alone, without Ray: trained, checkpointed and tracked in MLflow as a trial would be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from gpm_tune import locations
from gpm_tune.errors import DivergedError, first_line
from gpm_tune.interrupts import interruptible
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.runs import find_teacher
from gpm_tune.study.accounts.trained import single_user
from gpm_tune.study.running.publishing import pictures
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import prepare
from gpm_tune.study.tracking.publisher import Publisher
from gpm_tune.study.tracking.sender import check_store
from gpm_tune.study.tracking.views import View, single_view
from gpm_tune.training import Experiment
from gpm_tune.training.experiment import digest
from gpm_tune.training.loop import Asker, Training
from gpm_tune.training.objectives import metric_label, shown
from gpm_tune.training.run import EvaluationRecord, TrainingRun

T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """How far a single experiment has been trained, and how good it is."""

    finished: bool  # False if interrupted
    folder: str  # of its training run
    step: int
    metric: str
    label: str  # the metric, as it is shown
    value: float | None  # the best; None where nothing was measured yet
    best_step: int | None

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        if self.value is None:
            return []
        return [f"best {self.label} {shown(self.value)} at step {self.best_step}; training run {self.folder}"]


class _Single:
    """The run of a single experiment, as MLflow is to show it."""

    def __init__(self, experiment: Experiment, name: str, run: TrainingRun) -> None:
        self.state = "running"
        self.reason: str | None = None
        self.note: str | None = None
        self._started = time.time_ns() // 1_000_000
        self._experiment = experiment
        self._name = name
        self._run = run
        # MLflow's params never change: an experiment that shares the training run has a run of its own there.
        self.key = f"{run.name}-{digest(experiment.model_dump(mode='json'), 8)}"

    @property
    def evaluations(self) -> list[EvaluationRecord]:
        """What was measured, as far as the experiment asks."""
        return self._run.evaluations(self._experiment.judge(), up_to=self._experiment.training.steps)

    def __call__(self, key: str) -> View:
        """The view; it begins with the first evaluation, or with this process where there is none."""
        found = self.evaluations
        return single_view(
            self._experiment,
            self._name,
            key,
            found,
            self.state,
            dict(pictures(self._run, found)),
            started=found[0].time if found else self._started,
            data_fingerprint=self._experiment.fingerprints["data"],
            run=self._run.name,
            note=self.note,
            reason=self.reason,
        )


def train(experiment: Experiment, name: str, home: Home, device: str, console: Console) -> Trained:
    """Train an experiment to its end, from where its training run stands.

    The same training, on the same data, is the same run, whoever asked for it before.
    Raises UserError where something is missing, DivergedError where numbers stop being finite.
    """
    home.check()
    home.check_tracking()
    experiment = find_teacher(experiment, home)
    prepare(experiment, home)
    run = home.open_runs().of(experiment)
    if not run.checkpoints():
        check_store(home.tracking_uri)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    if note := run.note_of_other_data(experiment):
        say(note)
    step = run.newest(experiment.training.steps)
    if step >= experiment.training.steps:
        say(f"trained already, in {run.location}")
    elif step > 0:
        say(f"continuing at step {step}, in {run.location}")
    single, patience = _Single(experiment, name, run), Patience()
    known = [record.step for record in single.evaluations if record.step <= step]

    def take_note(text: str) -> None:
        single.note = text
        say(text)

    def note_away(error: Exception) -> None:
        text = f"the storage was away: {type(error).__name__}: {first_line(error)}"
        if single.note != text:
            single.note = text
            say(f"{text}; waiting for it")

    def use(call: Callable[[], T]) -> T:
        if home.storage:
            return locations.retry(call, note_away, patience.is_over)
        return patience.use(call, Path(run.location))

    with (
        interruptible() as interrupted,
        Publisher(home.tracking_uri, name, single, home.artifact_root) as publisher,
    ):
        patience.is_over = interrupted
        asker = Asker(
            user=single_user(name, experiment),
            name=f"gpm-tune train {name}",
            should_stop=interrupted,
            on_wait=lambda holder: say(f"waiting for {holder}, which trains the same"),
            on_note=take_note,
            on_teacher=lambda teacher, record: say(f"teacher: {_line(teacher, record)}"),
            use_storage=use,
        )
        training = Training(experiment, run, asker, device=device)
        single.state = "interrupted"
        try:
            for record in training.evaluations(after=max(known, default=-1)):
                publisher.touch(single.key)
                say(_line(experiment, record))
            if training.is_done:
                single.state = "complete"
        except DivergedError as error:
            single.state, single.reason = "fail", str(error)
            raise
        finally:
            publisher.touch(single.key)
    return _trained(training)


def _line(experiment: Experiment, record: EvaluationRecord) -> str:
    values = [
        f"{metric_label(name, experiment.features)} {shown(value)}" for name, value in record.metrics.items()
    ]
    return f"step {record.step}/{experiment.training.steps}: {', '.join(values)}"


def _trained(training: Training) -> Trained:
    experiment, run = training.experiment, training.run
    objective = experiment.default_objective
    best = run.best_evaluation(experiment)
    return Trained(
        finished=training.is_done,
        folder=run.location,
        step=max(run.newest(experiment.training.steps), 0),
        metric=objective.metric,
        label=metric_label(objective.metric, experiment.features),
        value=objective.value_of(best) if best else None,
        best_step=best.step if best else None,
    )
