"""What a study will cost: a few measured steps, and the costs of its first trials relative to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpm_tune.errors import UserError
from gpm_tune.plugins import named
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.cluster.capacity import Capacity, price_of, this_machine
from gpm_tune.study.cluster.connection import connected
from gpm_tune.study.definition.specification import Resources, StudyConfig
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import check_data_here
from gpm_tune.study.views.results import right
from gpm_tune.training import Experiment
from gpm_tune.training.description import Description, count_costs
from gpm_tune.training.profiling import Pace, measure_pace

TRIALS = 12  # sampled, for the mean of their costs
HOUR = 3600


@dataclass(frozen=True)
class Part:
    """Trainings of one kind; hours of the whole part, and what they cost, from the least to the most."""

    name: str
    trainings: int
    hours: tuple[float, float]
    gpu_hours: tuple[float, float]
    dollars: tuple[float, float] | None  # of the nodes; None where the cluster's file names no prices


@dataclass(frozen=True)
class Forecast:
    """A study's cost before it is run."""

    pace: Pace  # of the base experiment
    trial_hours: float  # of a trial that is not stopped early, on average
    at_a_time: int
    parts: list[Part]
    ends_early: list[str]  # sentences about budgets that end the study before its trials do
    too_large: str | None  # a sentence about the first trials, where one does not fit its share of a GPU

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def forecast(study: StudyConfig, home: Home, address: str) -> Forecast:
    """Measure on this machine, or on a worker of a cluster, and extrapolate.

    home: whose teachers need not be trained any more.

    Raises UserError where no trial could run there, or the feature network cannot be had, or data that are
    here cannot be read.
    """
    check_data_here(study.experiment)
    experiments = [study.experiment]
    teacher = study.experiment.teacher
    if teacher and not _has_trained(teacher, home):
        experiments.append(teacher)
    if address == "local":
        this_machine().check(study.resources, "this machine")
        return extrapolate(study, _measure(experiments, study.resources), this_machine())
    with connected(address) as capacity:
        capacity().check(study.resources, "the Ray cluster")
        import ray

        task = ray.remote(_measure).options(**study.resources.for_task)
        try:
            paces = ray.get(task.remote(experiments, study.resources))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        return extrapolate(study, paces, capacity())


def _has_trained(teacher: Experiment, home: Home) -> bool:
    """Whether a teacher need not be trained; its data are not fetched to tell."""
    files: Path | None = getattr(teacher.data, "files", None)
    return (files is None or files.exists()) and home.runs.of(teacher).is_trained(teacher)


def _measure(experiments: Sequence[Experiment], resources: Resources) -> list[Pace]:
    device = "cuda" if resources.gpu else "cpu"
    with named():
        return [measure_pace(experiment, device, resources.cpu) for experiment in experiments]


def extrapolate(study: StudyConfig, paces: Sequence[Pace], capacity: Capacity) -> Forecast:
    """The forecast from the pace of the base experiment, and of the teacher if it is to be trained.

    capacity: of where the study is to run.
    """
    at_a_time = capacity.trials_at_a_time(study.resources)
    base, *teacher = paces
    drawn = [spec.experiment for spec in TrialManager(study, storage=None).draw(TRIALS)]
    first = drawn or [study.experiment]
    own, costs = count_costs(study.experiment), [count_costs(trial) for trial in first]
    first_paces = [_scaled(base, found, own) for found in costs]
    whole = mean(_hours(trial, pace) for trial, pace in zip(first, first_paces, strict=True))
    share = study.scheduler.usual_share(max(study.experiment.training.steps, 1))
    gpu = study.resources.gpu

    def part(name: str, trainings: int, hours: float, least: float = 1.0, together: int = 1) -> Part:
        most = trainings * hours
        rounds = -(-trainings // together) * hours
        price = price_of(capacity.used_by(study.resources, min(trainings, together)))
        return Part(
            name,
            trainings,
            (least * rounds, rounds),
            (least * most * gpu, most * gpu),
            None if price is None else (least * rounds * price, rounds * price),
        )

    parts = [part("teacher", 1, _hours(study.experiment.teacher, pace)) for pace in teacher]
    trials = study.budget.trials
    if not study.searches_training:  # all share that of the base, and measure its best weights and its last
        measured = min(2, _evaluations(study.experiment))
        parts.append(part("training", 1, whole))
        whole = measured * mean(pace.evaluation for pace in first_paces) / HOUR
    search = part("search", trials, whole, share, at_a_time)
    parts.append(search)
    if study.confirm:
        trainings = study.confirm.trials * study.confirm.seeds
        parts.append(part("confirm", trainings, whole, together=at_a_time))
    too_large = _too_large(base, own, costs, gpu)
    return Forecast(base, whole, at_a_time, parts, list(_limits(study, search)), too_large)


def _limits(study: StudyConfig, search: Part) -> Iterator[str]:
    """What the budget's other limits leave of the trials."""
    for key, allowed, needed in [
        ("hours", study.budget.hours, search.hours),
        ("gpu_hours", study.budget.gpu_hours, search.gpu_hours),
    ]:
        if allowed is not None and allowed < needed[1]:
            least, most = (
                min(search.trainings, int(allowed / max(n, 1e-12) * search.trainings)) for n in needed[::-1]
            )
            reach = f"{least}" if least == most else f"{least} to {most}"
            yield f"budget.{key} ({allowed:g}) suffices for {reach} of {search.trainings} trials"


def _hours(experiment: Experiment | None, pace: Pace) -> float:
    """Of a whole training at a pace."""
    assert experiment is not None, "there is a pace of what there is"
    return (experiment.training.steps * pace.step + _evaluations(experiment) * pace.evaluation) / HOUR


def _evaluations(experiment: Experiment) -> int:
    """How many a training has."""
    return max(1, -(-experiment.training.steps // experiment.evaluation.every))


def _scaled(pace: Pace, found: Description, own: Description) -> Pace:
    """The pace of a trial: the base's, scaled by the trial's FLOPs relative to the base's own."""

    def ratio(flops: float, of_base: float) -> float:
        return flops / of_base if of_base else 1.0

    return replace(
        pace,
        step=pace.step * ratio(found.flops_per_step, own.flops_per_step),
        evaluation=pace.evaluation * ratio(found.flops_per_sample, own.flops_per_sample),
    )


def _too_large(base: Pace, own: Description, trials: Sequence[Description], gpu: float) -> str | None:
    """Whether the largest trial, as much larger than the base as is counted, exceeds its share of a GPU."""
    if base.gpu_memory is None:
        return None
    step, evaluation, total = base.gpu_memory
    needed = max(evaluation, step + max(found.memory - own.memory for found in trials))
    share = gpu * total
    if needed <= share:
        return None
    return (
        f"WARNING: a trial needs about {needed / 1e9:.3g} GB of the GPU, and resources.gpu ({gpu:g}) leaves "
        f"it {share / 1e9:.3g} of {total / 1e9:.3g} GB; raise resources.gpu, or lower training.batch_size"
    )


def forecast_lines(found: Forecast, study: StudyConfig) -> list[object]:
    """For people: a sentence on what was measured, the parts, and what the budget leaves of them."""
    pace = found.pace
    has_prices = any(part.dollars for part in found.parts)
    heads = ("trainings", "time", "GPU-hours", *(["nodes, US$"] if has_prices else []))
    table = Table("stage", *map(right, heads), title="forecast", box=SIMPLE_HEAD)
    for part in found.parts:
        cells = [str(part.trainings), _range(part.hours, _duration), _range(part.gpu_hours, _number)]
        table.add_row(part.name, *cells, *([_range(part.dollars, _number)] if part.dollars else []))
    lines: list[object] = [
        f"measured on {pace.device}: {pace.step * 1000:.3g} ms a step, {pace.evaluation:.3g} s an "
        f"evaluation; a trial takes {_duration(found.trial_hours)} on average, {found.at_a_time} at a time",
        table,
    ]
    if study.scheduler.usual_share(max(study.experiment.training.steps, 1)) < 1:
        lines.append(f"the lower figure: {study.scheduler.name} stops as many trials as it is built to stop")
    if 0 < study.resources.gpu < 1:
        lines.append("measured with the GPU to itself: trials that share one slow each other")
    if has_prices:
        lines.append(
            "US$ at the prices of the cluster's file, for the head and the nodes that the trials need"
        )
    return lines + list(found.ends_early) + ([found.too_large] if found.too_large else [])


def _range(hours: tuple[float, float], show: Callable[[float], str]) -> str:
    least, most = (show(value) for value in hours)
    return most if least == most else f"{least} to {most}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(hours: float) -> str:
    """In the largest unit of which there is at least one."""
    for unit, size in (("days", 24.0), ("hours", 1.0), ("min", 1 / 60)):
        if hours >= size:
            return f"{_number(hours / size)} {unit}"
    return f"{_number(hours * HOUR)} s"
