"""The study: a base experiment, a search space, an objective and a budget, in one YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import Field, model_validator

import gpm_tune
from gpm_tune.config import Config, nearest
from gpm_tune.documents import Document, Location, printable
from gpm_tune.errors import UserError
from gpm_tune.paths import expand
from gpm_tune.study.definition import space
from gpm_tune.study.definition.distributions import AnyDistribution
from gpm_tune.study.definition.samplers import TPE, AnySampler
from gpm_tune.study.definition.schedulers import PBT, AnyScheduler, NoScheduler
from gpm_tune.training import Constraint, Experiment, Objective

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LONGEST_NAME = 100
MLFLOWS_OWN = "Default"  # the experiment of a new store, which keeps its artifacts elsewhere
CONFIRMATION = ".confirm"  # ends the name under which the storage has a study's stage of new seeds


class Budget(Config):
    """When the study is finished: at the first that is reached."""

    trials: int = Field(32, ge=1, description="Trials in all, failed and stopped ones included.")
    hours: float | None = Field(None, gt=0, description="Hours for which the study runs, pauses left out.")
    gpu_hours: float | None = Field(None, gt=0, description="Hours for which its trials occupy GPUs.")
    target: float | None = Field(None, description="Value of the first objective that is good enough.")


class Confirm(Config):
    """After the search: the best trials again, with other seeds, so that luck is not taken for quality."""

    trials: int = Field(3, ge=1, description="How many of the best trials.")
    seeds: int = Field(5, ge=2, description="New seeds for each of them.")


class Resources(Config):
    """What one trial occupies, and how many run at a time."""

    cpu: int = Field(1, ge=1, description="CPU cores, and threads, per trial.")
    gpu: float = Field(
        0.0,
        ge=0,
        description="Share of a GPU, and of its memory, per trial: 0.25 lets four trials share one; 0 trains "
        "on the CPU.",
    )
    accelerator_type: str | None = Field(
        None,
        description="Kind of GPU that a trial needs, by Ray's name for it (A10G, H100, …); null for any.",
    )
    concurrent: int | None = Field(
        None, ge=1, description="Trials at a time; null for as many as the cluster holds."
    )
    time_limit: float | None = Field(
        None,
        gt=0,
        description="Seconds in which a trial must reach its next evaluation, and in which it must write "
        "a checkpoint, or it fails as hanging; null for no limit.",
    )

    @model_validator(mode="after")
    def _check(self) -> Resources:
        if self.gpu > 1:
            raise ValueError(
                f"gpu: {self.gpu:g}: a trial trains on one GPU, or on a share of it\n"
                "help: set gpu to 1; the other GPUs train other trials at the same time"
            )
        if self.accelerator_type and not self.gpu:
            raise ValueError("accelerator_type is for trials that ask for a GPU: set gpu")
        return self

    @property
    def for_ray(self) -> dict[str, float]:
        """As Ray counts them."""
        wanted = {"CPU": float(self.cpu), "GPU": self.gpu}
        if self.accelerator_type:
            wanted[f"accelerator_type:{self.accelerator_type}"] = 0.001  # a mark, of which nodes have 1
        return wanted

    @property
    def for_task(self) -> dict[str, Any]:
        """The same as options of one of Ray's tasks."""
        others = self.for_ray
        return {"num_cpus": others.pop("CPU"), "num_gpus": others.pop("GPU"), "resources": others}


class StudyConfig(Config):
    """One search: the keys at the top of a study file."""

    name: str = Field(
        pattern=NAME,
        max_length=LONGEST_NAME,
        description="Identifies the study: running a file with the same name continues it.",
    )
    experiment: Experiment = Field(description="The base: what is not searched has these values.")
    search: dict[str, AnyDistribution] = Field(
        min_length=1, description="Path into the experiment -> distribution of its values."
    )
    objectives: list[Objective] = Field(
        [], description="What is optimised, the first first; empty for the data's default metric."
    )
    constraints: list[Constraint] = Field(
        [], description="Bounds that a trial must keep to count as a result."
    )
    start_from: list[str | dict[str, Any]] = Field(
        ["base"],
        description="First trials: `base` is the base experiment's values; further ones are an experiment's "
        "file (as of `gpm-tune best --export`), an MLflow run id, or a mapping from paths to values.",
    )
    warm_start: list[str] = Field(
        [], description="Names of studies whose finished trials the sampler learns from, too."
    )
    sampler: AnySampler = Field(
        TPE(name="tpe"), description="Where the values of the next trial come from: one of Optuna's samplers."
    )
    scheduler: AnyScheduler = Field(NoScheduler(name="none"), description="Which trials are stopped early.")
    budget: Budget = Field(
        Budget(), description="When the study is finished: at the first limit that is reached."
    )
    confirm: Confirm | None = Field(
        None, description="Stage after the search, the best trials with new seeds; null for none."
    )
    resources: Resources = Field(
        Resources(), description="What one trial occupies, and how many run at a time."
    )

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> StudyConfig:
        if self.name == MLFLOWS_OWN:
            raise ValueError(f"the name {MLFLOWS_OWN} is that of an experiment which MLflow makes itself")
        if self.name.endswith(CONFIRMATION):
            raise ValueError(
                f"a study's name does not end with {CONFIRMATION}, as its stage of new seeds does"
            )
        several = len(self.objectives) > 1
        if several and self.scheduler.name != "none":
            raise ValueError(
                f"scheduler '{self.scheduler.name}' compares trials by one objective; with "
                f"{len(self.objectives)} objectives set scheduler: {{name: none}}"
            )
        if several and not self.sampler.several_objectives:
            raise ValueError(
                f"sampler '{self.sampler.name}' has one objective; for {len(self.objectives)} choose "
                "tpe, gp, nsga2, nsga3, random, quasi_random, grid or brute_force"
            )
        return self

    @property
    def goals(self) -> list[Objective]:
        """What the study optimises."""
        return self.objectives or [self.experiment.default_objective]

    @property
    def objective(self) -> Objective:
        """The first of them: it decides which evaluation of a trial is its best."""
        return self.goals[0]

    @property
    def wanted(self) -> set[str]:
        """What objectives and constraints name."""
        return {named.metric for named in (*self.goals, *self.constraints)}

    @property
    def base(self) -> dict[str, Any]:
        """The base experiment as plain data."""
        return self.experiment.model_dump(mode="json")

    @property
    def searches_training(self) -> bool:
        """Whether trials differ in their trainings; else all share that of the base, and only sample."""
        return any(space.altering(self.base, self.search, Experiment.trained_part))

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same while a study is continued, for its trials to be comparable."""
        plain = self.model_dump(mode="json", include={"experiment", "search", "constraints"})
        return {**plain, "objectives": [goal.model_dump() for goal in self.goals]}


def check_name(name: str) -> str:
    """The name of a single experiment, as it is. Raises UserError unless a study could have it."""
    if len(name) > LONGEST_NAME or not re.fullmatch(NAME, name) or name == MLFLOWS_OWN:
        fitting = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:LONGEST_NAME] or "mine"
        raise UserError(
            f"'{printable(name)}' cannot be the name of an experiment: expected at most {LONGEST_NAME} "
            f"letters, digits, '_', '.' and '-', beginning with a letter or digit, and not {MLFLOWS_OWN}\n"
            f"help: --name {fitting if fitting != MLFLOWS_OWN else fitting.lower()}"
        )
    return name


def load_study(document: Document) -> StudyConfig:
    """A study in which every value that the search can sample fits the experiment.

    Raises UserError that names file, line, key, what was expected, and the nearest valid key.
    """
    include_teacher(document)
    _include_start_points(document)
    study = document.parse(StudyConfig)
    problems = list(_problems(study))
    if problems:
        raise document.refusal(problems)
    return study


def _problems(study: StudyConfig) -> Iterator[tuple[Location, str]]:
    """What keeps the parts of a study from fitting each other: (location, sentence) pairs."""
    experiment = study.experiment
    for index, objective in enumerate(study.objectives):
        try:
            experiment.check_objective(objective)
        except ValueError as error:
            yield ("objectives", index, "metric"), str(error)
    for index, constraint in enumerate(study.constraints):
        location = ("constraints", index)
        try:
            experiment.mode_of(constraint)
        except ValueError as error:
            yield (*location, "metric"), str(error)
        if constraint.min is None and constraint.max is None:
            yield location, "a constraint has a max, a min, or both"
        elif constraint.min is not None and constraint.max is not None and constraint.min > constraint.max:
            yield location, f"the min {constraint.min:g} is above the max {constraint.max:g}"
    if not study.resources.gpu and "system/gpu_memory" in study.wanted:
        yield ("resources",), "system/gpu_memory is measured on GPUs: trials have none (resources.gpu)"
    misfits = [(("search", path), problem) for path, problem in space.problems(study.base, study.search)]
    yield from misfits
    if misfits:
        return
    yield from _start_problems(study)
    try:
        study.sampler.proposals(study.base, study.search)
    except ValueError as error:
        yield ("sampler",), str(error)
    if isinstance(study.scheduler, PBT):
        for path in space.altering(study.base, study.search, _shapes):
            yield (
                ("search", path),
                "it changes the networks' shapes: a fork could not take over weights (pbt)",
            )


def _shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    """Of an experiment's weights, by their names."""
    from gpm_tune.training.description import build_empty

    model, _ = build_empty(experiment)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _start_problems(study: StudyConfig) -> Iterator[tuple[Location, str]]:
    for index, start in enumerate(study.start_from):
        if isinstance(start, str) and start != "base":
            if not re.fullmatch("[0-9a-f]{32}", start):
                yield ("start_from", index), f"'{start}': expected base, a .yaml file, or an MLflow run id"
            continue
        if isinstance(start, dict) and (unknown := start.keys() - study.search.keys()):
            path = min(unknown)
            yield ("start_from", index), f"'{path}' is not searched; {nearest(path, study.search)}"
            continue
        tree = study.base if start == "base" else space.put(study.base, cast("dict[str, Any]", start))
        what = "the base experiment" if start == "base" else "the start point"
        try:
            space.parameters(tree, study.base, study.search)
        except ValueError as error:
            yield ("start_from", index), f"{what}'s {error}"


def _include_start_points(document: Document) -> None:
    """Where a start point is given as a file, put its searched values in its place."""
    starts, searched = document.data.get("start_from"), document.data.get("search")
    if not isinstance(starts, list) or not isinstance(searched, dict):
        return
    for index, start in enumerate(starts):
        if isinstance(start, str) and start.endswith((".yaml", ".yml")):
            tree = _base_experiment(_named_in(document, ("start_from", index), start)).model_dump(mode="json")
            starts[index] = space.found(tree, searched)


def include_teacher(document: Document) -> None:
    """Where a Score GAN's teacher is given as a file, put that file's experiment in its place.

    Raises UserError where the file is missing, or what is given is no experiment.
    """
    location, given = _teacher(document)
    if isinstance(given, str):
        source = _named_in(document, location, given)
        if _teacher(source)[1] is not None:  # files that name each other would have no end
            raise document.refusal([(location, f"the model in {given} has a teacher itself: give an 'edm'")])
        teacher = _base_experiment(source).model_dump(mode="json")
        document.assign(".".join(location), teacher, document.at(location))
    elif isinstance(given, dict):
        document.parse(Experiment, location)


def _named_in(document: Document, location: Location, name: str) -> Document:
    """The file that another one names at a location."""
    try:
        file = find_file(Path(name))
    except UserError as error:
        raise document.refusal([(location, str(error))]) from None
    return Document.load(file)


def _teacher(document: Document) -> tuple[tuple[str, ...], Any]:
    """Where a teacher's experiment may stand, and what stands there."""
    location = (*_base_location(document), "model", "teacher", "experiment")
    value = space.get(document.data, ".".join(location))
    return location, None if value is space.MISSING else value


def _base_location(document: Document) -> tuple[str, ...]:
    return ("experiment",) if "experiment" in document.data else ()


def _base_experiment(document: Document) -> Experiment:
    """The experiment of a file, or the base of a study, whatever the rest of the study is."""
    include_teacher(document)
    return document.parse(Experiment, _base_location(document))


def load_experiment(document: Document) -> Experiment:
    """The experiment of an experiment file, or the base experiment of a study file.

    Raises UserError as `load_study` does.
    """
    if "experiment" in document.data or "search" in document.data:
        return load_study(document).experiment
    return _base_experiment(document)


def open_file(name: Path) -> Document:
    """The document of a file, or bare name, so that overrides reach into the teacher's experiment, too.

    Raises UserError where there is none, or it cannot be read.
    """
    document = Document.load(find_file(name))
    include_teacher(document)
    return document


def find_file(name: Path) -> Path:
    """The study file of this name: as given, else among the studies that come with the program.

    Raises UserError where there is none.
    """
    name, shipped = expand(name), shipped_studies()
    others = [] if name.parent != Path() else [Path("search_spaces") / name, shipped / name]
    for candidate in (name, *others):
        if os.path.isfile(candidate):  # noqa: PTH113 (Path's raises where a name is too long to be one)
            return candidate
    known = [path.name for path in shipped.glob("*.yaml")]
    raise UserError(
        f"{printable(str(name))}: no such file, neither here nor among the studies that come with gpm-tune; "
        + nearest(name.name, known)
    )


def shipped_studies() -> Path:
    """The folder of studies that come with the program: inside the wheel, or beside the package."""
    package = Path(gpm_tune.__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"
