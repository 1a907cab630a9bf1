"""What a study has learnt and what it cost: a tidy frame per figure."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pandas as pd

from gpm_tune.analysis.figures import MEASURE
from gpm_tune.analysis.study_data import SPLIT, StudyData
from gpm_tune.metrics import MODES
from gpm_tune.study.accounts.confirmation import confirmed
from gpm_tune.study.accounts.records import TrialRecord
from gpm_tune.study.definition.distributions import Choice

FEWEST = 4  # complete trials from which importance can be said at all
SECONDS_PER_HOUR = 3600
ORIGIN = ["study", "trial", "run", "state", "seed"]


def trials(data: StudyData) -> pd.DataFrame:
    """A row per trial: its searched values, its best evaluation, what it cost.

    run: its training run. seconds: see `own_seconds`.
    """
    record, seconds = data.record, own_seconds(data)
    rows = [
        {
            **origin_of(data, trial),
            **{path: _shown(trial.values.get(path)) for path in record.search},
            **dict(zip((goal.metric for goal in record.objectives), trial.scores or (), strict=False)),
            "nfe": trial.measured and trial.measured.nfe,
            "best_step": trial.best_step,
            "steps": trial.step,
            "seconds": seconds[trial.number],
            "gpu_hours": None if data.gpu is None else seconds[trial.number] * data.gpu / SECONDS_PER_HOUR,
            "reason": trial.reason,
        }
        for trial in record.trials
    ]
    columns = [*ORIGIN, *record.search, *(goal.metric for goal in record.objectives)]
    costs = ["nfe", "best_step", "steps", "seconds", "gpu_hours", "reason"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *costs])))


def best_so_far(data: StudyData) -> pd.DataFrame:
    """The best value of the first objective after each trial, in the order in which trials ended.

    hours: training time of all trials so far, in parallel ones added up. Infeasible trials are no results.
    """
    record, seconds = data.record, own_seconds(data)
    order = sorted(record.trials, key=lambda trial: trial.ended or math.inf)
    feasible = {trial.number for trial in record.ranked()}
    rows, best, spent = [], None, 0.0
    for count, trial in enumerate(order, start=1):
        spent += seconds[trial.number]
        value = trial.value
        if value is not None and trial.number in feasible:
            best = value if best is None or record.objective.better(value, best) else best
        hours = spent / SECONDS_PER_HOUR
        gpu_hours = None if data.gpu is None else hours * data.gpu
        rows.append({**origin_of(data, trial), "trials": count, "hours": hours, "gpu_hours": gpu_hours})
        rows[-1] |= {**data.measure(record.objective.metric), "value": value, "best": best}
    return pd.DataFrame(rows, columns=[*ORIGIN, "trials", "hours", "gpu_hours", *MEASURE, "value", "best"])


def learning_curves(data: StudyData) -> pd.DataFrame:
    """The first objective at every evaluation of every trial."""
    origins = pd.DataFrame([origin_of(data, trial) for trial in data.record.trials], columns=ORIGIN)
    frame = origins.merge(data.curves, on="trial").assign(**data.measure(data.record.objective.metric))
    return frame[[*ORIGIN, "step", *MEASURE, "value"]].sort_values(["trial", "step"], ignore_index=True)


def value_by_nfe(data: StudyData) -> pd.DataFrame:
    """The metric against NFE at each trial's best evaluation; `front`: nothing is both cheaper and better."""
    metric = _metric_by_nfe(data)
    rows = [
        {
            **origin_of(data, trial),
            "step": trial.best_step,
            **data.measure(metric),
            "nfe": nfe,
            "value": value,
        }
        for trial in data.record.trials
        if metric and trial.feasible
        for nfe, value in (trial.measured.along_nfe(metric) if trial.measured else {}).items()
    ]
    frame = pd.DataFrame(rows, columns=[*ORIGIN, "step", *MEASURE, "nfe", "value"])
    ascending = MODES.get(metric, "min") == "min"
    ranked = frame.sort_values(["nfe", "value"], ascending=[True, ascending])
    reached = ranked["value"].cummin() if ascending else ranked["value"].cummax()
    frame["front"] = reached.ne(reached.shift()) & ranked["value"].eq(reached)
    return frame


def _metric_by_nfe(data: StudyData) -> str:
    """The metric that is drawn against NFE: the first objective's, if it is one that has a curve."""
    known = [name for trial in data.record.trials if trial.measured for name in trial.measured.metrics]
    wanted = data.record.objective.quantity.metric
    return wanted if wanted in known else next(iter(known), "")


def objectives(data: StudyData) -> pd.DataFrame:
    """The objectives of every feasible trial that has them; `front`: none is better in every one."""
    front = {trial.number for trial in data.record.front()}
    goals = [goal.metric for goal in data.record.objectives]
    frame = trials(data)
    frame = frame[frame["trial"].isin([trial.number for trial in data.record.ranked()])]
    extra = {"features": data.record.features, "samples": data.samples, "split": SPLIT}
    frame = frame[[*ORIGIN, *goals]].assign(**extra, front=frame["trial"].isin(front))
    return frame.sort_values(goals, ignore_index=True)


def importance(data: StudyData) -> pd.DataFrame:
    """The share of the first objective's variance that each searched value explains: fANOVA, by Optuna.

    Trials are compared at `step`, the last that all have reached which were not lost: their best values
    until there. (The complete ones alone, of a search that stops the bad ones early, are a biased choice.)
    A conditional value is judged over the `trials` that have it, so that shares need not add up to 1; NaN
    where these are too few, or all alike.
    """
    compared = [trial for trial in data.record.trials if trial.state in ("complete", "pruned", "infeasible")]
    curves = data.curves[data.curves["trial"].isin([trial.number for trial in compared])]
    step = curves.groupby("trial")["step"].max().min()
    so_far = curves[curves["step"] <= step].groupby("trial")["value"]
    objective = data.record.objective
    values = so_far.min() if objective.mode == "min" else so_far.max()
    known = [_for_optuna(data, trial, values[trial.number]) for trial in compared if trial.number in values]
    always = [path for path, searched in data.search.items() if not searched.when]
    rows = []
    for path in data.search:
        paths = list(dict.fromkeys([*always, path]))
        having = [trial for trial in known if set(paths) <= trial.params.keys()]
        rows.append({"parameter": path, "importance": _share(having, path, paths), "trials": len(having)})
    frame = pd.DataFrame(rows, columns=["parameter", "importance", "trials"])
    frame = frame.assign(evaluator="fANOVA", step=step, study=data.record.name)
    frame = frame.assign(**data.measure(objective.metric))
    return frame.sort_values("importance", ascending=False, ignore_index=True)


def _for_optuna(data: StudyData, trial: TrialRecord, value: float) -> optuna.trial.FrozenTrial:
    searched = {path: data.search[path] for path in data.search if path in trial.values}
    return optuna.trial.create_trial(
        value=value,
        params={path: found.encode(trial.values[path]) for path, found in searched.items()},
        distributions={path: found.for_optuna for path, found in searched.items()},
    )


def _share(having: list[optuna.trial.FrozenTrial], path: str, paths: list[str]) -> float:
    """One value's importance among those of its trials; NaN where nothing can be said."""
    if len(having) < FEWEST or len({trial.value for trial in having}) < 2:
        return float("nan")
    study = optuna.create_study()  # the direction does not matter to a variance
    study.add_trials(having)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=paths)[path]


def slices(data: StudyData) -> pd.DataFrame:
    """The first objective against each searched value of each trial."""
    metric = data.record.objective.metric
    rows = [
        {
            **origin_of(data, trial),
            "parameter": path,
            "at": _shown(trial.values[path]),
            **data.measure(metric),
        }
        | {"value": trial.value}
        for path in data.search
        for trial in data.record.trials
        if trial.value is not None and path in trial.values
    ]
    return pd.DataFrame(rows, columns=[*ORIGIN, "parameter", "at", *MEASURE, "value"])


def parallel(data: StudyData) -> pd.DataFrame:
    """Each trial's searched values and first objective, with their place from 0 to 1 between low and high."""
    frame = slices(data)
    metric = data.record.objective.metric
    once = frame.drop_duplicates("trial")
    frame = pd.concat([frame, once.assign(parameter=metric, at=once["value"])], ignore_index=True)
    frame["position"] = float("nan")
    for path, rows in frame.groupby("parameter"):
        frame.loc[rows.index, "position"] = _positions(data, str(path), rows["at"])
    return frame


def _positions(data: StudyData, path: str, values: pd.Series[Any]) -> pd.Series[Any]:
    searched = data.search.get(path)
    if isinstance(searched, Choice):
        labels = [_shown(value) for value in searched.choice]
        return values.map(labels.index) / max(1, len(labels) - 1)
    low, high = (values.min(), values.max()) if searched is None else searched.bounds
    low, high, values = float(low), float(high), values.astype(float)
    if getattr(searched, "log", False):
        low, high, values = math.log(low), math.log(high), values.map(math.log)
    return (values - low) / ((high - low) or 1.0)


def budget(data: StudyData) -> pd.DataFrame:
    """Training time and GPU-hours that trials of each state took."""
    frame = trials(data)
    sums = frame.groupby("state").agg(
        trials=("trial", "size"), seconds=("seconds", "sum"), gpu_hours=("gpu_hours", "sum")
    )
    sums = sums.assign(study=data.record.name, hours=sums["seconds"] / SECONDS_PER_HOUR)
    if data.gpu is None:
        sums["gpu_hours"] = None
    return sums.reset_index()[["study", "state", "trials", "seconds", "hours", "gpu_hours"]]


def confirmation(data: StudyData) -> pd.DataFrame:
    """The best trials with new seeds: a row per value, with the trial's mean and standard deviation."""
    rows = []
    for found in confirmed(data.record, data.stage) if data.stage else ():
        for trial in data.stage.trials if data.stage else ():
            if trial.confirms == found.number and trial.state == "complete":
                own = {"study": data.record.name, "trial": found.number, "seed": trial.values.get("seed")}
                rows.append({**own, **data.measure(data.record.objective.metric), "value": trial.value})
                rows[-1] |= {"searched": found.searched, "mean": found.mean, "std": found.std}
                rows[-1] |= {"best_share": found.best_share}
    columns = ["study", "trial", "seed", *MEASURE, "value", "searched", "mean", "std", "best_share"]
    return pd.DataFrame(rows, columns=columns).astype({"std": float})  # NaN of a single seed


def origin_of(data: StudyData, trial: TrialRecord) -> dict[str, Any]:
    """The columns ORIGIN: which trial it is, its training run, its state and its seed."""
    seed = trial.values.get("seed", data.record.experiment.get("seed"))
    values = (data.record.name, trial.number, trial.run, trial.state, seed)
    return dict(zip(ORIGIN, values, strict=True))


def _shown(value: Any) -> Any:
    """A value as a cell: numbers as they are, all else as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number or value is None else str(value)


def own_seconds(data: StudyData) -> dict[int, float]:
    """Training time by trial, up to its last evaluation, as far as this study has trained it.

    What trials share is counted once, for the first of them. Of a fork only since it forked, in proportion
    to the steps.
    """
    found: dict[int, float] = {}
    trained: dict[str, float] = {}  # seconds of each training run that are counted already
    for trial in sorted(data.record.trials, key=lambda trial: trial.number):
        _, forked_at = trial.fork_point or (None, 0)
        seconds = trial.seconds - data.others.get(trial.number, 0.0)
        before = trial.seconds * forked_at / trial.step if trial.step else 0.0
        if trial.run is not None:
            before = max(before, trained.get(trial.run, 0.0))
            trained[trial.run] = max(before, seconds)
        found[trial.number] = max(0.0, seconds - before)
    return found
