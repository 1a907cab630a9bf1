"""What a study has found, as tables for people and plain data for programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpm_tune.errors import UserError
from gpm_tune.study import space
from gpm_tune.study.ledger import StudyRecord, TrialRecord
from gpm_tune.study.progress import metric_label


def trials_table(record: StudyRecord, limit: int | None = None) -> Table:
    """The trials, best first, those without a value last."""
    ranked = record.ranked()
    trials = ranked + [trial for trial in record.trials if trial.value is None]
    table = Table(title=f"study {record.name}: {_states(record)}", box=SIMPLE_HEAD)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for path in record.search:
        table.add_column(_short(path, record.search), justify="right", overflow="fold")
    for column in (_objective_label(record), "NFE", "steps", "duration"):
        table.add_column(column, justify="right", no_wrap=True)
    for trial in trials[:limit]:
        table.add_row(*_row(record, trial))
    return table


def _row(record: StudyRecord, trial: TrialRecord) -> list[str]:
    return [
        str(trial.number),
        trial.state,
        *(show_value(trial.values.get(path, "-")) for path in record.search),
        "-" if trial.value is None else f"{trial.value:.4g}",
        f"{trial.metrics['nfe']:g}" if "nfe" in trial.metrics else "-",
        str(trial.step),
        f"{trial.seconds:.1f} s",
    ]


def show_value(value: Any) -> str:
    """A sampled value in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(path: str, paths: list[str]) -> str:
    """The end of a path that tells it from all others."""
    keys = path.split(".")
    for length in range(1, len(keys)):
        tail = ".".join(keys[-length:])
        if sum(other == tail or other.endswith(f".{tail}") for other in paths) == 1:
            return tail
    return path


def _states(record: StudyRecord) -> str:
    counts = Counter(trial.state for trial in record.trials)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no trials"


def _objective_label(record: StudyRecord) -> str:
    return metric_label(record.objective.metric, record.features)


def failures(record: StudyRecord) -> list[str]:
    """Why trials failed, a line each."""
    return [f"trial {t.number} failed: {t.reason}" for t in record.trials if t.reason]


def studies_table(records: list[StudyRecord]) -> Table:
    """One line per study."""
    table = Table("study", "trials", "best", "objective", box=SIMPLE_HEAD)
    for record in records:
        ranked = record.ranked()
        best = f"{ranked[0].value:.4g} (trial {ranked[0].number})" if ranked else "-"
        table.add_row(record.name, _states(record), best, _objective_label(record))
    return table


def plain(record: StudyRecord) -> dict[str, Any]:
    """A study as plain data, for JSON."""
    return {
        "name": record.name,
        "objective": record.objective.model_dump(),
        "features": record.features,
        "trials": [dataclasses.asdict(trial) for trial in record.trials],
    }


def best_trial(record: StudyRecord) -> TrialRecord:
    """The trial with the best value. Raises UserError where no trial has one."""
    ranked = record.ranked()
    if not ranked:
        raise UserError(f"study '{record.name}' has no trial with a result yet")
    return ranked[0]


def best_plain(record: StudyRecord) -> dict[str, Any]:
    """The best trial as plain data, its whole experiment included."""
    trial = best_trial(record)
    experiment = space.put(record.experiment, trial.values)
    return {"study": record.name, **dataclasses.asdict(trial), "experiment": experiment}


def best_yaml(record: StudyRecord) -> str:
    """The best trial's experiment as a YAML file that `gpm-tune train` runs."""
    best = best_plain(record)
    origin = (
        f"# Trial {best['number']} of study {record.name}: {_objective_label(record)} "
        f"{best['value']:.4g} at step {best['best_step']}, NFE {best['metrics']['nfe']:g}.\n"
    )
    return origin + yaml.safe_dump(best["experiment"], sort_keys=False, allow_unicode=True)
