"""One experiment alone, without Ray: trained, checkpointed and tracked in MLflow as a trial would be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gpm_tune.errors import DivergedError
from gpm_tune.interrupts import interruptible
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.runs import find_teacher
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import prepare
from gpm_tune.study.storage.locks import only_once
from gpm_tune.study.tracking.provenance import run_tags
from gpm_tune.study.tracking.sender import check_store
from gpm_tune.study.tracking.tracker import RunLog, Tracker
from gpm_tune.training import Evaluation, Experiment, Trainer, checkpoint
from gpm_tune.training.objectives import curve_of, metric_label, shown
from gpm_tune.training.pretraining import train_teacher
from gpm_tune.training.resuming import resume
from gpm_tune.training.saved import note_of_other_data, run_name


@dataclass(frozen=True)
class Trained:
    """How far a single experiment has been trained, and how good it is."""

    finished: bool  # False if interrupted
    folder: Path  # has its checkpoints
    step: int
    metric: str
    label: str  # the metric, as it is shown
    value: float | None  # the best; None where nothing was measured yet
    best_step: int | None

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {"folder": str(self.folder)}

    def lines(self) -> list[str]:
        """For people."""
        if self.value is None:
            return []
        return [
            f"best {self.label} {shown(self.value)} at step {self.best_step}; checkpoints in {self.folder}"
        ]


def train(experiment: Experiment, name: str, home: Home, device: str, console: Console) -> Trained:
    """Train an experiment to its end, from its last checkpoint if it has one.

    The same experiment under the same name, on the same data, is the same run.
    Raises UserError where something is missing, DivergedError where numbers stop being finite.
    """
    home.check()
    home.check_tracking()
    experiment = find_teacher(experiment, home)
    prepare(experiment, home)
    digest = run_name(experiment)
    folder = home.experiment(f"{name}-{digest}")
    if checkpoint.latest(folder) is None:
        check_store(home.tracking_uri)
    anew = note_of_other_data(folder, experiment.data)
    if anew:
        console.print(anew, highlight=False)
    with only_once(f"experiment '{name}'", folder):
        if not _teach(experiment, home, device, console):
            return _trained(experiment, folder, None)
        trainer = Trainer(experiment, device=device, cache=home.cache)
        note = resume(trainer, checkpoint.newest_first(folder))
        if trainer.step or note:
            console.print(note or f"continuing at step {trainer.step}", highlight=False)
        patience = Patience()
        with (
            interruptible() as interrupted,
            Tracker(folder / "spool", home.tracking_uri, name, home.artifact_root, patience) as tracker,
        ):
            patience.is_over = interrupted
            run = tracker.open_run(
                digest,
                name=f"{name}-{digest}",
                params=experiment.model_dump(mode="json"),
                tags=run_tags(experiment, trainer.data_fingerprint)
                | {"gpm.state": "running"}
                | ({"gpm.note": note} if note else {}),
            )
            _train_to_the_end(trainer, folder, run, console, patience)
    return _trained(experiment, folder, trainer)


def _teach(experiment: Experiment, home: Home, device: str, console: Console) -> bool:
    """Train the experiment's teacher, if it has one to be trained. Returns False if interrupted."""
    teacher = experiment.teacher
    if teacher is None:
        return True
    console.print(f"teacher: {teacher.model.name} on {teacher.data_label}", highlight=False)
    with interruptible() as interrupted:
        return train_teacher(
            teacher,
            home.cache,
            device,
            on_evaluation=lambda evaluation: _show(teacher, evaluation, console),
            should_stop=interrupted,
        )


def _train_to_the_end(
    trainer: Trainer, folder: Path, run: RunLog, console: Console, patience: Patience
) -> None:
    """Train until done or interrupted; nothing that was trained is lost."""
    try:
        with interruptible() as interrupted:
            while not trainer.done and not interrupted():
                evaluation = trainer.run_interval(interrupted)
                _keep(trainer, evaluation, folder, run, patience)
                if evaluation:
                    _show(trainer.experiment, evaluation, console)
        _log_best(trainer, run)
    except DivergedError as error:
        run.tags({"gpm.state": "fail", "gpm.reason": str(error)})
        run.end("FAILED")
        raise
    run.tags({"gpm.state": "complete" if trainer.done else "interrupted"})
    run.end("FINISHED" if trainer.done else "KILLED")


def _keep(
    trainer: Trainer, evaluation: Evaluation | None, folder: Path, run: RunLog, patience: Patience
) -> None:
    """Checkpoint, track what was measured, and drop checkpoints that are no longer needed."""
    place = checkpoint.next_folder(folder, trainer.step)
    patience.use(lambda: trainer.save(place), place)
    run.tags({"gpm.checkpoint": str(place)})
    if evaluation:
        run.metrics(evaluation.step, evaluation.metrics)
        run.artifact(f"samples/step_{evaluation.step:07d}.png", evaluation.picture)
        _log_best(trainer, run)
    checkpoint.drop_old(checkpoint.up_to(place))


def _log_best(trainer: Trainer, run: RunLog) -> None:
    """Track the best evaluation so far and, at the end, its curve against NFE; again, it changes nothing."""
    metric, best = trainer.objective.metric, trainer.best
    if best is None:
        return
    run.best(best.step, {name: best.metrics[name] for name in (metric, "nfe")})
    if trainer.done:
        run.curve(metric, dict(curve_of(metric, best.metrics)))


def _show(experiment: Experiment, evaluation: Evaluation, console: Console) -> None:
    features = experiment.features
    values = [
        f"{metric_label(name, features)} {shown(evaluation.metrics[name])}" for name in experiment.metrics
    ]
    line = f"step {evaluation.step}/{experiment.training.steps}: {', '.join(values)}"
    console.print(line, highlight=False)


def _trained(experiment: Experiment, folder: Path, trainer: Trainer | None) -> Trained:
    metric, best = experiment.default_objective.metric, trainer.best if trainer else None
    return Trained(
        finished=trainer is not None and trainer.done,
        folder=folder / "checkpoints",
        step=trainer.step if trainer else 0,
        metric=metric,
        label=metric_label(metric, experiment.features),
        value=best.metrics[metric] if best else None,
        best_step=best.step if best else None,
    )
