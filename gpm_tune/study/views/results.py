"""What a study has found, as tables for people and plain data for programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.table import Column, Table

from gpm_tune.documents import as_yaml
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.confirmation import Confirmed, confirmed, rank_agreement
from gpm_tune.study.accounts.records import StudyRecord, TrialRecord, best_trial, read_confirmation
from gpm_tune.study.definition import space
from gpm_tune.training.objectives import TIMES, Measured, metric_label, shown

COSTS = ["steps", "duration"]
FREE = 10_000  # characters: a line that nothing limits


class Fitting:
    """A table in the first of its forms that is not wider than where it is shown, else in the last."""

    def __init__(self, *forms: Table) -> None:
        self._forms = forms

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        free = options.update(max_width=FREE)
        fitting = [f for f in self._forms if console.measure(f, options=free).maximum <= options.max_width]
        yield (fitting or self._forms[-1:])[0]


def right(head: str) -> Column:
    """A column of numbers."""
    return Column(head, justify="right")


def trials_table(record: StudyRecord, limit: int | None = None) -> Fitting:
    """The trials, best first, those without a value last; in narrow places without what they cost."""
    return Fitting(_trials_table(record, limit, narrow=False), _trials_table(record, limit, narrow=True))


def _trials_table(record: StudyRecord, limit: int | None, narrow: bool) -> Table:
    ranked = record.ranked()
    numbers = {trial.number for trial in ranked}
    trials = ranked + [trial for trial in record.trials if trial.number not in numbers]
    table = Table(title=f"study {record.name}: {states(record)}", box=SIMPLE_HEAD, pad_edge=not narrow)
    paths = [short_path(path, record.search) for path in record.search]
    heads = ["trial", "state", *paths, *_objective_labels(record), "NFE", *([] if narrow else COSTS)]
    for head in heads:
        broken = re.sub(r"([_.]|(?<= )(?=\())", r"\1\n", head) if narrow else head
        justify: JustifyMethod = "left" if head == "state" else "right"
        table.add_column(broken, justify=justify, no_wrap=True)
    for trial in trials[:limit]:
        table.add_row(*_row(record, trial)[: len(heads)])
    return table


def _row(record: StudyRecord, trial: TrialRecord) -> list[str]:
    return [
        str(trial.number),
        trial.state,
        *(show_value(trial.values.get(path, "-")) for path in record.search),
        *(shown(score) for score in trial.scores or ()),
        *("-" for _ in record.objectives if not trial.scores),
        str(trial.measured.nfe) if trial.measured else "-",
        str(trial.step),
        f"{trial.seconds:.1f} s",
    ]


def show_value(value: Any) -> str:
    """A sampled value in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_path(path: str, paths: list[str]) -> str:
    """The end of a path that tells it from all others."""
    keys = path.split(".")
    for length in range(1, len(keys)):
        tail = ".".join(keys[-length:])
        if sum(other == tail or other.endswith(f".{tail}") for other in paths) == 1:
            return tail
    return path


def states(record: StudyRecord) -> str:
    """How many trials are in each state, in words."""
    counts = Counter(trial.state for trial in record.trials)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no trials"


def _objective_labels(record: StudyRecord) -> list[str]:
    return [metric_label(objective.metric, record.features) for objective in record.objectives]


def failures(record: StudyRecord) -> list[str]:
    """Why trials failed, a line each."""
    ended = sorted((t for t in record.trials if t.reason), key=lambda trial: trial.state != "fail")
    return [f"trial {t.number} {'failed' if t.state == 'fail' else t.state}: {t.reason}" for t in ended]


def lineage(record: StudyRecord) -> list[str]:
    """Where forks of population-based training come from, a line each."""
    return [f"trial {t.number} is a fork of {t.forked_from}" for t in record.trials if t.forked_from]


def shared(record: StudyRecord) -> list[str]:
    """Which trials share a training run, a line for each."""
    trials: dict[str, list[str]] = {}
    for trial in record.trials:
        if trial.run:
            trials.setdefault(trial.run, []).append(str(trial.number))
    return [f"trials {', '.join(of)} share the training run {run}" for run, of in trials.items() if of[1:]]


def pareto(record: StudyRecord) -> list[str]:
    """The Pareto front of a study with several objectives, in words."""
    if len(record.objectives) == 1:
        return []
    numbers = ", ".join(str(trial.number) for trial in record.front())
    return [f"Pareto front of {' and '.join(_objective_labels(record))}: trials {numbers or '-'}"]


def report(storage: str, record: StudyRecord) -> list[object]:
    """All that a person is shown of a study."""
    lines = [*failures(record), *lineage(record), *shared(record), *pareto(record)]
    things: list[object] = [trials_table(record), *lines]
    if record.dollars is not None:
        things.append(f"spent: {spent(record)}")
    things += unlike_gpus(record)
    stage = read_confirmation(storage, record.name)
    if stage is not None:
        things += [confirmation_table(record, confirmed(record, stage)), *failures(stage)]
    return things


def spent(record: StudyRecord) -> str:
    """Hours, GPU-hours, and what the nodes cost where that is known."""
    dollars = "" if record.dollars is None else f", US$ {record.dollars:.2f} for the nodes that were up"
    return f"{record.hours:.2f} hours, {record.gpu_hours:.2f} GPU-hours{dollars}"


def unlike_gpus(record: StudyRecord) -> list[str]:
    """That times were judged which were taken on unlike GPUs, if so."""
    kinds = sorted({kind for trial in record.trials for kind in trial.gpus})
    times = [objective.metric for objective in record.objectives if objective.metric in TIMES]
    if len(kinds) < 2 or not times:
        return []
    return [f"trials ran on {' and '.join(kinds)}: their {' and '.join(times)} cannot be compared"]


def confirmation_table(search: StudyRecord, rows: list[Confirmed]) -> Table:
    """What new seeds say of the best trials."""
    (label, *_) = _objective_labels(search)
    tau = rank_agreement(rows)
    agreement = "" if tau is None else f", rank agreement with the search (Kendall τ) {tau:.2f}"
    columns = map(right, ("trial", f"{label} in the search", "mean", "std", "seeds", "best in"))
    title = f"best trials of {search.name} with new seeds{agreement}"
    table = Table(*columns, title=title, box=SIMPLE_HEAD)
    for row in rows:
        spread = "-" if row.std is None else shown(row.std, 2)
        numbers = (shown(row.searched), shown(row.mean), spread)
        table.add_row(str(row.number), *numbers, str(len(row.values)), f"{row.best_share:.0%}")
    return table


def studies_table(records: list[StudyRecord]) -> Table:
    """One line per study."""
    table = Table("study", "trials", "best", "objective", box=SIMPLE_HEAD)
    for record in records:
        ranked = record.ranked()
        scores = ranked[0].scores if ranked else None
        best = f"{shown(scores[0])} (trial {ranked[0].number})" if scores else "-"
        table.add_row(record.name, states(record), best, " and ".join(_objective_labels(record)))
    return table


def plain(record: StudyRecord) -> dict[str, Any]:
    """A study as plain data, for JSON."""
    return {
        "name": record.name,
        "objectives": [objective.model_dump() for objective in record.objectives],
        "features": record.features,
        "data_fingerprint": record.data_fingerprint,
        "hours": record.hours,
        "gpu_hours": record.gpu_hours,
        "dollars": record.dollars,
        "pareto_front": [trial.number for trial in record.front()],
        "trials": [_plain_trial(trial) for trial in record.trials],
    }


def _plain_trial(trial: TrialRecord) -> dict[str, Any]:
    fields = {**vars(trial), "value": trial.value}
    return {k: v.model_dump(mode="json") if isinstance(v, Measured) else v for k, v in fields.items()}


def best_plain(record: StudyRecord) -> dict[str, Any]:
    """The best trial as plain data, its whole experiment included."""
    trial = best_trial(record)
    experiment = space.put(record.experiment, trial.values)
    return {"study": record.name, **_plain_trial(trial), "experiment": experiment}


def best_yaml(record: StudyRecord) -> str:
    """The best trial's experiment as a YAML file that `gpm-tune train` runs."""
    best = best_plain(record)
    nfe = max(map(int, best["measured"]["curve"]))
    origin = (
        f"# Trial {best['number']} of study {record.name}: {_objective_labels(record)[0]} "
        f"{shown(best['scores'][0])} at step {best['best_step']}, NFE {nfe}.\n"
    )
    return origin + as_yaml(best["experiment"])


def comparison(records: list[StudyRecord]) -> Table:
    """Studies side by side, each by its best trial. Raises UserError where they measured different things."""
    _refuse_other_measures(records)
    table = Table("", *(right(record.name) for record in records), box=SIMPLE_HEAD)
    best = [record.ranked()[0] if record.ranked() else None for record in records]
    for index, objective in enumerate(records[0].objectives):
        scores = [shown(trial.scores[index]) if trial and trial.scores else "-" for trial in best]
        table.add_row(metric_label(objective.metric, records[0].features), *scores)
    table.add_row("best trial", *(str(trial.number) if trial else "-" for trial in best))
    table.add_row("NFE", *(str(trial.measured.nfe) if trial and trial.measured else "-" for trial in best))
    table.add_row("at step", *(str(trial.best_step) if trial else "-" for trial in best))
    table.add_row("trials", *(states(record) for record in records))
    table.add_row("hours", *(f"{record.hours:.2f}" for record in records))
    table.add_row("GPU-hours", *(f"{record.gpu_hours:.2f}" for record in records))
    table.add_row("model", *(record.experiment["model"]["name"] for record in records))
    for path in dict.fromkeys(path for record in records for path in record.search):
        values = [show_value(trial.values[path]) if trial and path in trial.values else "-" for trial in best]
        table.add_row(path, *values)
    return table


def _refuse_other_measures(records: list[StudyRecord]) -> None:
    first = records[0]
    for other in records[1:]:
        here, there = first.measure, other.measure
        differing = [key for key in here if here[key] != there[key]]
        if differing:
            raise UserError(
                f"studies '{first.name}' and '{other.name}' cannot be compared: they differ in "
                + ", ".join(f"{key} ({here[key]}; {there[key]})" for key in differing)
            )
