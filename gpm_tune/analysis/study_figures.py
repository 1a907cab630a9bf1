"""What a study has learnt and what it cost, as charts: each is one frame, drawn for paper and for a page."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pandas as pd

from gpm_tune.analysis import study_frames as frames
from gpm_tune.analysis.charts import FAINT, Chart, Panel, Series
from gpm_tune.analysis.figures import COLORS
from gpm_tune.analysis.study_data import StudyData
from gpm_tune.study.accounts.confirmation import confirmed, rank_agreement
from gpm_tune.study.accounts.records import TrialRecord
from gpm_tune.study.definition.distributions import Choice
from gpm_tune.study.views.results import short_path, show_value

BLUE, VERMILLION, GREEN, PINK, AMBER, SKY, _ = COLORS
STATES = {  # colour and marker
    "complete": (BLUE, "o"),
    "pruned": (AMBER, "v"),
    "fail": (PINK, "X"),
    "infeasible": (SKY, "P"),
    "running": (GREEN, "s"),
    "interrupted": (GREEN, "D"),
}
BEST = (VERMILLION, "*")
ENDS = {"pruned": "stopped here", "fail": "failed after this"}
FEW = 20  # trials below which importance is a hint
THIRDS = (("best third", BLUE, "o"), ("middle third", SKY, "s"), ("last third", AMBER, "v"))
WIDE_SPREAD = 30.0  # ratio of values from which their axis is logarithmic
MINUTES_PER_HOUR = 60
NOTHING = "No trial has been measured yet."


def study_charts(data: StudyData) -> Iterator[Chart]:
    """All charts of a study, those that have nothing to show left out, except where that is worth a word."""
    yield best_so_far(data)
    yield learning_curves(data)
    if len(data.record.objectives) > 1:
        yield pareto(data)
    yield value_by_nfe(data)
    yield importance(data)
    yield slices(data)
    yield parallel(data)
    yield budget(data)
    if data.stage is not None:
        yield confirmation(data)


def best_so_far(data: StudyData) -> Chart:
    """Best value so far against trials, and against what they cost."""
    frame = frames.best_so_far(data)
    measured = frame.dropna(subset="value")
    metric = data.title(data.record.objective.metric)
    costs = {"trials": (frame["trials"], "trials ended"), **_costs(data, frame)}
    panels = []
    for at, title in costs.values():
        placed, line = measured.assign(at=at), frame.assign(at=at).dropna(subset="best")
        series = [*_by_state(placed, "at", "value"), _best_line(line["at"], line["best"])]
        panels.append(Panel(title, metric, series, y_log=spreads(measured["value"])))
    return Chart(
        "best",
        "Best so far",
        f"Best {metric} so far against the number of trials and against their training time. "
        + _say_best(data),
        frame,
        panels if len(measured) else [],
        "" if len(measured) else NOTHING,
    )


def learning_curves(data: StudyData) -> Chart:
    """The first objective against training steps, where trials were stopped, and where they failed."""
    frame = frames.learning_curves(data)
    metric = data.title(data.record.objective.metric)
    series, ends = [], []
    for trial in data.record.trials:
        rows = frame[frame["trial"] == trial.number]
        if rows.empty:
            continue
        donor, step = trial.fork_point or (None, None)
        before = frame[(frame["trial"] == donor) & (frame["step"] == step)]  # a fork goes on from there
        series.append(_curve(pd.concat([before, rows]), trial, trial == data.best))
        if trial.state in ENDS:
            x, y = list(rows["step"])[-1:], list(rows["value"])[-1:]
            color, marker = STATES[trial.state]
            ends.append(Series(x, y, color, ENDS[trial.state], "points", marker, hover=series[-1].hover[-1:]))
    without = len(data.record.trials) - len(series)
    series.sort(key=lambda curve: curve.width)  # the best one is drawn over the others
    return Chart(
        "curves",
        "Learning curves",
        f"{metric} against training steps, one line per trial; trials that were stopped early or failed "
        f"are marked where they ended. " + _say_best(data),
        frame,
        [Panel("training steps", metric, series + ends, y_log=spreads(frame["value"]))] if series else [],
        f"Trials without any evaluation: {without}." if without else "",
    )


def _curve(rows: pd.DataFrame, trial: TrialRecord, is_best: bool) -> Series:
    steps, values = list(rows["step"]), list(rows["value"])
    color, _ = STATES[trial.state]
    look: dict[str, Any] = {"color": color, "opacity": 0.6, "label": trial.state}
    if is_best:
        look = {"color": BEST[0], "width": 3.0, "label": f"best: trial {trial.number}"}
    named = f"trial {trial.number} ({trial.state})"
    hover = [f"{named}, step {step}: {value:.4g}" for step, value in zip(steps, values, strict=True)]
    return Series(steps, values, hover=hover, marker="o" if len(rows) == 1 else "", **look)


def value_by_nfe(data: StudyData) -> Chart:
    """The metric against NFE per trial, with the front of what cannot be had both cheaper and better."""
    frame = frames.value_by_nfe(data)
    if frame.empty:
        return Chart("nfe", "Quality against NFE", "", frame, [], NOTHING)
    metric = data.title(frame["metric"].iloc[0])
    series = [
        Series(
            list(rows["nfe"]),
            list(rows["value"]),
            *STATES[rows["state"].iloc[0]][:1],
            label=rows["state"].iloc[0],
            marker=STATES[rows["state"].iloc[0]][1],
            width=1.0,
            opacity=FAINT,
            hover=[
                f"trial {number}, NFE {n}: {v:.4g}" for n, v in zip(rows["nfe"], rows["value"], strict=True)
            ],
        )
        for number, rows in frame.groupby("trial")
    ]
    front = frame[frame["front"]].sort_values("nfe")
    panel = Panel(
        "NFE", metric, [*series, _front(front, "nfe", "value", "steps")], True, spreads(frame["value"])
    )
    words = ", ".join(f"NFE {r.nfe}: {r.value:.4g} (trial {r.trial})" for r in front.itertuples())
    note = "Each trial at its best evaluation; the front is of all trials."
    return Chart("nfe", "Quality against NFE", f"{metric} against NFE. Front: {words}.", frame, [panel], note)


def pareto(data: StudyData) -> Chart:
    """The objectives against each other."""
    frame = frames.objectives(data)
    goals = [goal.metric for goal in data.record.objectives]
    panels = []
    for one, other in combinations(goals, 2):
        points = _by_state(frame, one, other)
        is_stair = [goal.mode for goal in data.record.objectives] == ["min", "min"]
        rows = frame[frame["front"]].sort_values(one)
        front = _front(rows, one, other, "steps" if is_stair else "points")
        titles = data.title(one), data.title(other)
        panels.append(Panel(*titles, [*points, front], spreads(frame[one]), spreads(frame[other])))
    trials = ", ".join(str(number) for number in frame[frame["front"]]["trial"])
    alt = f"{' and '.join(goals)} of each trial against each other. Pareto front: trials {trials}."
    ok = len(frame) > 0
    return Chart("pareto", "Pareto front", alt, frame, panels if ok else [], "" if ok else NOTHING)


def importance(data: StudyData) -> Chart:
    """How much of the objective's variance each searched value explains."""
    frame = frames.importance(data)
    known = frame.dropna(subset="importance")
    searched = list(data.search)
    names = [short_path(path, searched) for path in known["parameter"]]
    unknown = [
        short_path(row.parameter, searched)
        for row in frame.itertuples()
        if row.parameter not in set(known["parameter"])
    ]
    metric = data.title(data.record.objective.metric)
    notes = []
    if len(known):
        most = int(known["trials"].max())
        step = int(known["step"].iloc[0])
        notes.append(
            f"fANOVA over {most} trials, by their best value until step {step}, which all of them reached."
        )
        if most < FEW:
            notes.append(f"With fewer than {FEW} trials this is a hint, not a finding.")
        if any(data.search[path].when for path in known["parameter"]):
            notes.append("Conditional values are judged over the trials that have them.")
    if unknown:
        too_few = f"fewer than {frames.FEWEST} trials to compare, or all with one value"
        notes.append(f"Not known of {', '.join(unknown)}: {too_few}.")
    words = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, known["importance"], strict=True))
    panel = Panel(
        f"share of the variance of {metric}",
        "",
        [Series(list(known["importance"]), names, BLUE, kind="bars")],
    )
    alt = f"Importance of the searched values: {words}."
    return Chart("importance", "What matters", alt, frame, [panel] if len(known) else [], " ".join(notes))


def slices(data: StudyData) -> Chart:
    """The objective against each searched value."""
    frame = frames.slices(data)
    metric = data.title(data.record.objective.metric)
    panels = []
    for path, rows in frame.groupby("parameter", sort=False):
        is_log = getattr(data.search[str(path)], "log", False)
        if isinstance(data.search[str(path)], Choice):
            rows = rows.assign(at=rows["at"].astype(str))
        series = _by_state(rows, "at", "value")
        panels.append(Panel(str(path), metric, series, is_log, spreads(frame["value"])))
    alt = f"{metric} against each searched value, a point per trial. " + _say_best(data)
    note = "" if panels else NOTHING
    return Chart("slices", "Each searched value", alt, frame, panels, note)


def parallel(data: StudyData) -> Chart:
    """All searched values of each trial at once, a row per value."""
    frame = frames.parallel(data)
    if frame.empty:
        return Chart("parallel", "All values together", "", frame, [], NOTHING)
    objective = data.record.objective
    paths = [*data.search, objective.metric]
    names = {path: short_path(path, paths) for path in paths}
    best = data.best.number if data.best else None
    ranks = frame[frame["parameter"] == objective.metric].set_index("trial")["value"]
    ranks = ranks.rank(pct=True, ascending=objective.mode == "min")
    order = ranks.sort_values(ascending=False).index
    series = [
        _row_of(frame[frame["trial"] == number], names, number == best, ranks[number]) for number in order
    ]
    series.sort(key=lambda line: line.width)  # the best one is drawn over the others
    texts = []
    for path in paths:
        for position, value in _ends(data, path, frame):
            texts.append((position, names[path], value))
    alt = "One line per trial through all its searched values, from low to high; coloured by thirds "
    panel = Panel("low to high", "", series, texts=texts)
    return Chart("parallel", "All values together", alt + f"of {objective.metric}.", frame, [panel])


def _row_of(rows: pd.DataFrame, names: dict[str, str], is_best: bool, rank: float) -> Series:
    """A trial's line in parallel coordinates."""
    number = rows["trial"].iloc[0]
    rows = rows.set_index("parameter").reindex(list(names))  # a gap where a value is not searched
    hover = [f"trial {number}: {names[path]} {show_value(at)}" for path, at in rows["at"].items()]
    label, color, marker = THIRDS[min(2, int(rank * 3 - 1e-9))]
    look: dict[str, Any] = {"color": color, "label": label, "opacity": 0.6}
    if is_best:
        look = {"color": BEST[0], "label": f"best: trial {number}", "width": 3.0}
    return Series(list(rows["position"]), list(names.values()), hover=hover, marker=marker, **look)


def _ends(data: StudyData, path: str, frame: pd.DataFrame) -> list[tuple[float, str]]:
    """Places and values to be written on a row of parallel coordinates."""
    searched = data.search.get(path)
    if isinstance(searched, Choice):
        last = max(1, len(searched.choice) - 1)
        return [(index / last, show_value(value)) for index, value in enumerate(searched.choice)]
    values = frame[frame["parameter"] == path]["at"]
    low, high = (values.min(), values.max()) if searched is None else searched.bounds
    return [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]


def budget(data: StudyData) -> Chart:
    """What trials of each state cost."""
    frame = frames.budget(data)
    names = [f"{row.state} ({row.trials})" for row in frame.itertuples()]
    panels = [
        Panel(title, "", [Series(list(cost), names, BLUE, kind="bars")])
        for cost, title in _costs(data, frame).values()
    ]
    words = ", ".join(f"{row.trials} {row.state}: {row.hours:.3g} hours" for row in frame.itertuples())
    note = "Training up to each trial's last evaluation; evaluations, checkpoints and waiting are left out."
    alt = f"Training time by what became of trials: {words}."
    ok = len(frame) > 0
    return Chart(
        "budget",
        "Where the budget went",
        alt,
        frame,
        panels if ok else [],
        note if ok else "There are no trials yet.",
    )


def confirmation(data: StudyData) -> Chart:
    """The best trials with new seeds, beside their values in the search."""
    frame = frames.confirmation(data)
    if frame.empty or data.stage is None:
        return Chart("confirmation", "With new seeds", "", frame, [], "No trial has been confirmed yet.")
    metric = data.title(data.record.objective.metric)
    rows = frame.drop_duplicates("trial")
    names = {number: f"trial {number}" for number in rows["trial"]}
    series = [
        Series(
            [names[n] for n in frame["trial"]],
            list(frame["value"]),
            BLUE,
            "a new seed",
            "points",
            "o",
            opacity=0.6,
        ),
        Series(
            list(names.values()),
            list(rows["mean"]),
            GREEN,
            "mean and std over seeds",
            "points",
            "s",
            error=list(rows["std"]),
        ),
        Series(list(names.values()), list(rows["searched"]), *BEST[:1], "in the search", "points", BEST[1]),
    ]
    tau = rank_agreement(confirmed(data.record, data.stage))
    stability = "" if tau is None else f"Rank agreement with the search (Kendall τ): {tau:.2f}. "
    shares = ", ".join(f"trial {row.trial} {row.best_share:.0%}" for row in rows.itertuples())
    note = f"{stability}Share of resampled seeds in which each is the best: {shares}."
    spreads = [f" ± {std:.2g}" if pd.notna(std) else "" for std in rows["std"]]
    words = ", ".join(
        f"trial {r.trial}: {r.mean:.4g}{spread}" for r, spread in zip(rows.itertuples(), spreads, strict=True)
    )
    alt = f"{metric} of the best trials with new seeds. {words}."
    return Chart("confirmation", "With new seeds", alt, frame, [Panel("", metric, series)], note)


def _costs(data: StudyData, frame: pd.DataFrame) -> dict[str, tuple[pd.Series[Any], str]]:
    """What was spent, and its title."""
    time, unit = in_hours(frame["hours"])
    found = {"hours": (time, f"training time, all trials added up ({unit})")}
    return found | ({"gpu_hours": (frame["gpu_hours"], "GPU-hours of training")} if data.gpu else {})


def in_hours(hours: pd.Series[Any]) -> tuple[pd.Series[Any], str]:
    """Hours, or minutes where they are few; and which of the two."""
    return (hours, "hours") if hours.max() >= 1 else (hours * MINUTES_PER_HOUR, "minutes")


def _by_state(frame: pd.DataFrame, x: str, y: str) -> list[Series]:
    """Points of trials, a series per state."""
    found = []
    for state, (color, marker) in STATES.items():
        rows = frame[frame["state"] == state]
        hover = [
            f"trial {r['trial']} ({state}): {show_value(r[x])}, {show_value(r[y])}"
            for _, r in rows.iterrows()
        ]
        if len(rows):
            found.append(
                Series(list(rows[x]), list(rows[y]), color, state, "points", marker, opacity=0.8, hover=hover)
            )
    return found


def _best_line(x: pd.Series[Any], y: pd.Series[Any]) -> Series:
    return Series(list(x), list(y), BEST[0], "best so far", "steps", width=2.5)


def _front(rows: pd.DataFrame, x: str, y: str, kind: Any) -> Series:
    hover = [f"front: trial {r['trial']}, {show_value(r[x])}, {show_value(r[y])}" for _, r in rows.iterrows()]
    return Series(list(rows[x]), list(rows[y]), BEST[0], "front", kind, BEST[1], 2.5, hover=hover)


def spreads(values: pd.Series[Any]) -> bool:
    """Whether values spread so widely that their axis is logarithmic."""
    known = values.dropna()
    return bool(len(known) and known.min() > 0 and known.max() / known.min() > WIDE_SPREAD)


def _say_best(data: StudyData) -> str:
    return "" if data.best is None else f"Best: {data.best.value:.4g}, trial {data.best.number}."
