"""One experiment alone, without Ray: trained, checkpointed and tracked in MLflow as a trial would be."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch
from rich.console import Console

from gpm_tune.errors import DivergedError, UserError
from gpm_tune.study.conductor import flatten, run_tags
from gpm_tune.study.guards import interruptible, only_once
from gpm_tune.study.home import Home
from gpm_tune.study.progress import metric_label
from gpm_tune.study.run import prepare
from gpm_tune.study.tracking import RunLog, Tracker
from gpm_tune.training import Evaluation, Experiment, Trainer

CHECKPOINTS_KEPT = 2


def train(experiment: Experiment, name: str, home: Home, device: str, console: Console) -> bool:
    """Train an experiment to its end, from its last checkpoint if it has one.

    The same experiment under the same name is the same run. Returns False if interrupted.
    Raises UserError where something is missing, DivergedError where numbers stop being finite.
    """
    prepare(experiment)
    digest = hashlib.sha256(experiment.model_dump_json().encode()).hexdigest()[:12]
    folder = home.experiment(f"{name}-{digest}")
    with only_once(f"experiment '{name}'", folder):
        trainer = Trainer(experiment, device=device, cache=home.cache)
        latest = latest_checkpoint(folder)
        if latest:
            trainer.restore(latest)
            console.print(f"continuing at step {trainer.step} from {latest}", highlight=False)
        with Tracker(folder / "spool", home.tracking_uri, name, home.artifact_root) as tracker:
            run = tracker.open_run(
                digest,
                name=f"{name}-{digest}",
                params=flatten(experiment.model_dump(mode="json")),
                tags=run_tags(experiment) | {"gpm.state": "running"},
            )
            _train_to_the_end(trainer, folder, run, console)
    _summarise(trainer, folder, console)
    return trainer.done


def _train_to_the_end(trainer: Trainer, folder: Path, run: RunLog, console: Console) -> None:
    """Train until done or interrupted; nothing that was trained is lost."""
    interrupts: list[bool] = []
    try:
        with interruptible(lambda: interrupts.append(True)):
            while not trainer.done and not interrupts:
                evaluation = trainer.run_interval(lambda: bool(interrupts))
                _keep(trainer, evaluation, folder, run)
                if evaluation:
                    _show(trainer.experiment, evaluation, console)
    except DivergedError as error:
        run.tags({"gpm.state": "fail", "gpm.reason": str(error)})
        run.end("FAILED")
        raise
    run.tags({"gpm.state": "complete" if trainer.done else "interrupted"})
    run.end("FINISHED" if trainer.done else "KILLED")


def choose_device(wanted: str | None) -> str:
    """The device asked for, or the best there is. Raises UserError where it is not here."""
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    device = wanted or available[0]
    if device.split(":")[0] not in available:
        raise UserError(f"--device {device}: not on this machine; valid: {', '.join(available)}")
    return device


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a single experiment's run, or None."""
    found = sorted(folder.glob("checkpoints/step_*/checkpoint.json"))
    return found[-1].parent if found else None


def _keep(trainer: Trainer, evaluation: Evaluation | None, folder: Path, run: RunLog) -> None:
    """Checkpoint, track what was measured, and drop checkpoints that are no longer needed."""
    checkpoint = folder / "checkpoints" / f"step_{trainer.step:09d}"
    trainer.save(checkpoint)
    run.tags({"gpm.checkpoint": str(checkpoint)})
    if evaluation:
        run.metrics(evaluation.step, evaluation.metrics)
        run.artifact(f"samples/step_{evaluation.step:07d}.png", evaluation.picture)
    for old in sorted(checkpoint.parent.glob("step_*"))[:-CHECKPOINTS_KEPT]:
        shutil.rmtree(old)


def _show(experiment: Experiment, evaluation: Evaluation, console: Console) -> None:
    features = experiment.features
    values = [f"{metric_label(name, features)} {evaluation.metrics[name]:.4g}" for name in experiment.metrics]
    line = f"step {evaluation.step}/{experiment.training.steps}: {', '.join(values)}"
    console.print(line, highlight=False)


def _summarise(trainer: Trainer, folder: Path, console: Console) -> None:
    metric = trainer.objective.metric
    if trainer.best:
        label = metric_label(metric, trainer.experiment.features)
        console.print(
            f"best {label} {trainer.best.metrics[metric]:.4g} at step {trainer.best.step}; "
            f"checkpoints in {folder / 'checkpoints'}",
            highlight=False,
        )
