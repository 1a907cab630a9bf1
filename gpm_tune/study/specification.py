"""The study: a base experiment, a search space, an objective and a budget, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gpm_tune.config import Config, nearest
from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.study import space
from gpm_tune.study.distributions import AnyDistribution
from gpm_tune.training import Experiment, Objective

if TYPE_CHECKING:
    import optuna


class TPE(Config):
    """Tree-structured Parzen estimator, Optuna's default: multivariate, aware of running trials."""

    name: Literal["tpe"]
    seed: int = Field(0, ge=0, description="Of the sampler's random numbers.")
    startup_trials: int = Field(10, ge=0, description="Random trials before the model is used.")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Optuna's sampler, with this seed in place of the configured one."""
        import optuna

        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials)


class Random(Config):
    """Independent random values."""

    name: Literal["random"]
    seed: int = Field(0, ge=0, description="Of the sampler's random numbers.")

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """Optuna's sampler, with this seed in place of the configured one."""
        import optuna

        return optuna.samplers.RandomSampler(seed=seed)


class ASHA(Config):
    """Asynchronous successive halving: at each rung only the best 1/reduction_factor go on."""

    name: Literal["asha"]
    grace_steps: int = Field(1, ge=1, description="Training steps that every trial may have.")
    reduction_factor: int = Field(3, ge=2, description="Ratio between rungs, and of survivors.")

    def build(self) -> optuna.pruners.BasePruner:
        """Optuna's pruner: its state is in the storage, so that a restart loses none of it."""
        import optuna

        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=self.grace_steps, reduction_factor=self.reduction_factor
        )


class NoScheduler(Config):
    """Every trial runs to its end."""

    name: Literal["none"]

    def build(self) -> optuna.pruners.BasePruner:
        """Optuna's pruner that never prunes."""
        import optuna

        return optuna.pruners.NopPruner()


class Budget(Config):
    """When the study is finished."""

    trials: int = Field(32, ge=1, description="Trials in all, failed and stopped ones included.")


class Resources(Config):
    """What one trial occupies, and how many run at a time."""

    cpu: int = Field(1, ge=1, description="CPU cores, and threads, per trial.")
    gpu: float = Field(0.0, ge=0, description="GPUs per trial; a fraction shares one.")
    concurrent: int | None = Field(
        None, ge=1, description="Trials at a time; null for as many as the cluster holds."
    )
    time_limit: float | None = Field(
        None,
        gt=0,
        description="Seconds in which a trial must reach its next evaluation, and in which it must write "
        "a checkpoint, or it fails as hanging; null for no limit.",
    )


def _one(objectives: Any) -> Any:
    if isinstance(objectives, list) and len(objectives) > 1:
        raise ValueError("one objective is supported so far")
    return objectives


class Study(Config):
    """One search."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=100,
        description="Identifies the study: running a file with the same name continues it.",
    )
    experiment: Experiment = Field(description="The base: what is not searched has these values.")
    search: dict[str, AnyDistribution] = Field(
        min_length=1, description="Path into the experiment -> distribution of its values."
    )
    objectives: Annotated[list[Objective], BeforeValidator(_one)] = Field(
        [], max_length=1, description="What is optimised; empty for the data's default metric."
    )
    start_from: list[Literal["base"]] = Field(
        ["base"], max_length=1, description="First trials: `base` is the base experiment's values."
    )
    sampler: Annotated[TPE | Random, Field(discriminator="name")] = Field(
        TPE(name="tpe"), description="Optuna's sampler."
    )
    scheduler: Annotated[ASHA | NoScheduler, Field(discriminator="name")] = Field(
        NoScheduler(name="none"), description="Which trials are stopped early."
    )
    budget: Budget = Field(Budget(), description="When the study is finished.")
    resources: Resources = Field(Resources(), description="What trials occupy.")

    @property
    def objective(self) -> Objective:
        """What the study optimises."""
        return self.objectives[0] if self.objectives else self.experiment.default_objective

    @property
    def base(self) -> dict[str, Any]:
        """The base experiment as plain data."""
        return self.experiment.model_dump(mode="json")

    def with_experiment(self, experiment: Experiment) -> Study:
        """The study of another base experiment."""
        return self.model_copy(update={"experiment": experiment})

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same while a study is continued, for its trials to be comparable."""
        plain = self.model_dump(mode="json", include={"experiment", "search"})
        return {**plain, "objective": self.objective.model_dump()}


def load_study(document: Document) -> Study:
    """A study in which every value that the search can sample fits the experiment.

    Raises UserError that names file, line, key, what was expected, and the nearest valid key.
    """
    include_teacher(document)
    study = document.parse(Study)
    metrics = study.experiment.metrics
    if study.objective.metric not in metrics:
        raise UserError(
            document.where(("objectives", 0, "metric"))
            + f"unknown metric '{study.objective.metric}'; {nearest(study.objective.metric, metrics)}"
        )
    problems = [
        document.where(("search", path)) + problem
        for path, problem in space.problems(study.base, study.search, bool(study.start_from))
    ]
    if problems:
        raise UserError("\n".join(problems))
    return study


def include_teacher(document: Document) -> None:
    """Where a Score GAN's teacher is given as a file, put that file's experiment in its place.

    Raises UserError where the file is missing or holds no experiment.
    """
    prefix = ["experiment"] if "experiment" in document.data else []
    location = (*prefix, "model", "teacher", "experiment")
    value: Any = document.data
    for key in location:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, str):
        teacher = load_experiment(Document.load(find_file(Path(value))))
        document.assign(".".join(location), teacher.model_dump(mode="json"), document.at(location))


def load_experiment(document: Document) -> Experiment:
    """The experiment of an experiment file, or the base experiment of a study file.

    Raises UserError as `load_study` does.
    """
    if "experiment" in document.data or "search" in document.data:
        return load_study(document).experiment
    include_teacher(document)
    return document.parse(Experiment)


def find_file(name: Path) -> Path:
    """The study file of this name: as given, else among the studies that come with the program.

    Raises UserError where there is none.
    """
    shipped = shipped_studies()
    candidates = [
        name,
        *([] if name.parent != Path() else [Path("search_spaces") / name, shipped / name]),
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = [path.name for path in shipped.glob("*.yaml")]
    raise UserError(
        f"{name}: no such file, neither here nor among the studies that come with gpm-tune; "
        + nearest(name.name, known)
    )


def shipped_studies() -> Path:
    """The folder of studies that come with the program: inside the wheel, or beside the package."""
    package = Path(__file__).parents[1]
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"
