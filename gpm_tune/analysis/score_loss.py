"""How well K score steps follow a moving generator: their loss between its updates, and quality against K.

Figure 6 and appendix C.4.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from gpm_tune.analysis.figures import COLORS, MEASURE, STYLE, metric_title, new_figure, refuse_mixed
from gpm_tune.analysis.retraining import Origin, start, train_to
from gpm_tune.config import nearest
from gpm_tune.errors import DivergedError, UserError
from gpm_tune.interrupts import interruptible
from gpm_tune.study.accounts.trained import Trained, read_trained
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import only_once
from gpm_tune.training import Experiment, Trainer, checkpoint
from gpm_tune.training.loop import resume
from gpm_tune.training.run import Runs, TrainingRun

LOSS = "denoising"  # the term of the score's loss
KEPT_EVERY = 5000  # steps of training between states that are kept on the way
COLUMNS = [
    *("study", "stage", "trial", "run", "seed", "k", "training_steps", "generator_updates"),
    *("lr_score", "lr_generator", "metric", "features", "samples", "split", "value"),
]
VARIED = ("model.score_steps", "seed", "training.steps", "evaluation.every")

_log = logging.getLogger("gpm_tune")


def with_score_steps(origin: Origin, score_steps: int, updates: int) -> Experiment:
    """The experiment with K = score_steps, and as many training steps as these generator updates take.

    What evaluations need is not loaded: none is made. Raises UserError where it is no Score GAN.
    """
    experiment = origin.experiment
    if not experiment.model.scores_generated:
        raise UserError(
            f"{origin.name}: a '{experiment.model.name}' has no score of the generated distribution; "
            "give a 'score_gan'"
        )
    plain = experiment.model_dump(mode="json")
    plain["model"]["score_steps"] = score_steps
    plain["training"]["steps"] = score_steps * updates
    plain["evaluation"] = {"samples": 2, "features": "small" if experiment.features else None}
    return Experiment.model_validate(plain)


def follow(
    experiment: Experiment, updates: Sequence[int], home: Home, device: str, *, repeats: int, seed: int
) -> pd.DataFrame:
    """For each number of generator updates, the score's loss at each of the K steps that follow the last one.

    The run is trained up to there; then, `repeats` times from the same state with other random numbers,
    K score steps are made while the generator rests. Columns besides those of K and learning rates:
    generator_updates, score_steps (made since the update, before the loss was taken), loss (their mean),
    standard_error, repeats. Raises UserError where data or teacher cannot be had.
    """
    run = kept_in(experiment, home)
    note = run.note_of_other_data(experiment)
    if note:
        _log.warning("%s", note)
    frames = []
    with only_once(f"the training in {run.location}", Path(run.location)):
        trainer = start(experiment, home, device)
        k = trainer.model.flow_steps
        for count in sorted(set(updates)):
            place = reach(trainer, count * k, run)
            losses = np.array([_score_steps(trainer, place, seed + i, k) for i in range(repeats)])
            error = losses.std(0, ddof=1) / np.sqrt(repeats)
            columns = {"score_steps": range(k), "loss": losses.mean(0), "standard_error": error}
            frames.append(pd.DataFrame({"generator_updates": count, "training_step": count * k, **columns}))
    score, generator = learning_rates(experiment)
    return pd.concat(frames, ignore_index=True).assign(
        k=k,
        repeats=repeats,
        batch_size=experiment.training.batch_size,
        lr_score=score,
        lr_generator=generator,
        data=experiment.data_label,
        training_seed=experiment.seed,
    )


def kept_in(experiment: Experiment, home: Home) -> TrainingRun:
    """Where the states of a run that was trained for this figure are kept; its length makes no difference."""
    return Runs(str(home.cache / "score_loss"), home.cache).of(experiment)


def reach(trainer: Trainer, step: int, run: TrainingRun) -> Path:
    """Train up to a step, from the newest state that is kept, and keep that state too; where it is kept.

    Raises KeyboardInterrupt after a signal that asks to stop, once the state is kept.
    """
    place = Path(run.checkpoint(step))
    resume(trainer, run, step, _log.warning)
    if trainer.step == step and checkpoint.is_whole(place):
        return place
    passing = None
    with interruptible() as interrupted:
        while trainer.step < step and not interrupted():
            train_to(trainer, min(step, trainer.step + KEPT_EVERY), step, interrupted)
            trainer.save(Path(run.checkpoint(trainer.step)))
            if passing:
                shutil.rmtree(passing)
            passing = run.checkpoint(trainer.step)
    if trainer.step < step:
        raise KeyboardInterrupt
    return place


def _score_steps(trainer: Trainer, place: Path, seed: int, k: int) -> list[float]:
    """The loss at each of k score steps from a state that is kept; DivergedError where it is not finite."""
    trainer.restore(place)
    trainer.reseed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout
        losses = [trainer.fit_flow()[LOSS].detach() for _ in range(k)]
    values: list[float] = torch.stack(losses).tolist()
    if not np.isfinite(values).all():
        raise DivergedError(f"loss/{LOSS} was not finite within {k} steps after step {trainer.step - k}")
    return values


def rates(score: float, generator: float) -> str:
    """Learning rates in words."""
    if score == generator:
        return f"equal learning rates, {score:g}"
    return f"learning rates: score {score:g}, generator {generator:g}"


def learning_rates(experiment: Experiment) -> tuple[float, float]:
    """Of the score of the generated distribution, and of the generator."""
    training = experiment.training
    return training.optimizer_of("flow").lr, training.optimizer_of("generator").lr


def draw_losses(losses: pd.DataFrame, name: str) -> Figure:
    """A panel per number of generator updates (Figure 6). losses: what `follow` returns."""
    first, counts = losses.iloc[0], losses["generator_updates"].unique()
    with rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(counts), 3.6), layout="constrained")
        for axes, count in zip(figure.subplots(1, len(counts), squeeze=False).flat, counts, strict=True):
            rows = losses[losses["generator_updates"] == count]
            x, mean, error = (rows[column].to_numpy() for column in ("score_steps", "loss", "standard_error"))
            axes.plot(x, mean, color=COLORS[0], marker=".", markersize=4, linewidth=1)
            axes.fill_between(x, mean - error, mean + error, color=COLORS[0], alpha=0.25, linewidth=0)
            axes.set_title(f"after generator update {count:,}", fontsize=10)
            axes.set_xlabel("score updates since the generator's")
            axes.set_ylabel("loss of the generated distribution's score")
        known = (
            f"{name}, {first['data']}, K = {first['k']}, {rates(first['lr_score'], first['lr_generator'])}"
        )
        figure.suptitle(f"{known}; mean of {first['repeats']} restarts ± standard error", fontsize=9)
    return figure


def best_by_run(home: Home, names: Sequence[str], metric: str | None) -> pd.DataFrame:
    """A row per finished Score GAN of the studies, or single experiments: its K, and its best value.

    metric: None for the data's first. Runs that are not finished are left out with a warning.
    Raises UserError where that leaves none, or where they cannot share an axis.
    """
    known = [found for name in names for found in read_trained(home, name)]
    runs = [f for f in known if _k(f.experiment) is not None and f.state == "complete"]
    if not runs:
        counts = Counter(found.state for found in known)
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        raise UserError(f"{', '.join(names)}: no finished run of a score_gan yet (runs: {states or 'none'})")
    if len(runs) < len(known):
        _log.warning("left out: %d runs that are not finished score_gans", len(known) - len(runs))
    frame = pd.DataFrame(map(_row, runs))
    refuse_mixed(frame, "quality against K", ["data", "data_fingerprint", "features", "samples"])
    modes = runs[0].experiment.metrics
    chosen = metric or next(iter(modes))
    if chosen not in modes:
        raise UserError(f"--metric {chosen}; {nearest(chosen, modes)}")
    _say_what_differs([found.experiment for found in runs])
    best = min if modes[chosen] == "min" else max
    values = [[e.metrics[chosen] for e in found.evaluations if chosen in e.metrics] for found in runs]
    frame = frame.assign(metric=chosen, value=[best(found, default=None) for found in values])
    return frame[COLUMNS].dropna(subset="value").sort_values(["k", "seed"], ignore_index=True)


def _row(found: Trained) -> dict[str, Any]:
    experiment = found.experiment
    k, steps = _k(experiment), experiment.training.steps
    score, generator = learning_rates(experiment)
    return {
        "label": found.run if found.trial is None else f"{found.study}/{found.trial}",
        "study": found.study,
        "stage": found.stage,
        "trial": found.trial,
        "run": found.run,
        "seed": experiment.seed,
        "k": k,
        "training_steps": steps,
        "generator_updates": None if k is None else steps // k,
        "lr_score": score,
        "lr_generator": generator,
        "data": experiment.data_label,
        "data_fingerprint": found.data_fingerprint,
        "features": experiment.features,
        "samples": experiment.evaluated_samples,
        "split": "validation",
    }


def _k(experiment: Experiment) -> int | None:
    """Score updates to a generator update; None for a model that has none."""
    k: int | None = experiment.model_dump()["model"].get("score_steps")
    return k


def _say_what_differs(experiments: Sequence[Experiment]) -> None:
    """Warn where experiments differ in more than K and seed: their values' spread has several causes."""
    frame = pd.json_normalize([experiment.model_dump(mode="json") for experiment in experiments])
    differing = [path for path in frame if path not in VARIED and frame[path].map(str).nunique() > 1]
    if differing:
        _log.warning("the runs differ in more than K and seed: %s", ", ".join(differing))


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per K and number of generator updates: mean, and standard deviation where there are several."""
    groups = runs.groupby(["k", "generator_updates"])["value"]
    return groups.agg(mean="mean", std="std", runs="count").reset_index()


def draw_quality(runs: pd.DataFrame) -> Figure:
    """Quality against K. runs: the rows of `best_by_run`."""
    summary = over_seeds(runs)
    figure, axes = new_figure()
    with rc_context(STYLE):
        axes.plot(runs["k"], runs["value"], "o", color=COLORS[5], markersize=4, zorder=3, label="one run")
        axes.errorbar(
            summary["k"],
            summary["mean"],
            yerr=summary["std"],
            color=COLORS[0],
            marker="s",
            markersize=5,
            capsize=3,
            label="mean ± standard deviation",
        )
        axes.set_xscale("log", base=2)
        ticks = summary.groupby("k")["generator_updates"].agg(lambda n: "\n".join(f"{x:,}" for x in n))
        axes.set_xticks(ticks.index, [f"{k}\n{updates}" for k, updates in ticks.items()])
        axes.minorticks_off()
        axes.set_xlabel("K, score steps per generator update; below it: generator updates")
        axes.set_ylabel(f"best {metric_title(*runs.iloc[0][MEASURE])}", fontsize=9)
        axes.set_title("; ".join(_settings(runs)), fontsize=9)
        axes.legend()
    return figure


def _settings(runs: pd.DataFrame) -> list[str]:
    """What the runs have in common, in words."""
    pairs = runs[["lr_score", "lr_generator"]].drop_duplicates()
    same = rates(*pairs.iloc[0]) if len(pairs) == 1 else "several learning rates"
    steps = sorted(runs["training_steps"].unique())
    return [", ".join(f"{n:,}" for n in steps) + " score steps each", same]
