"""Commands on single experiments: trained, described, sampled, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpm_tune.cli.common import (
    EXPERIMENTS,
    INTERRUPTED,
    DeviceOption,
    FileArgument,
    HomeOption,
    NameOption,
    NFEOption,
    ResamplesOption,
    SamplesOption,
    SeedOption,
    SetOption,
    SplitOption,
    TrackingOption,
    command,
    complete_study,
    home_at,
    load,
    this_command,
    writable,
)
from gpm_tune.cli.output import output

if TYPE_CHECKING:
    from gpm_tune.training.generation import ModelSampler
    from gpm_tune.training.saved import SavedModel

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="STUDY (its best trial), STUDY/TRIAL, a training run or its folder, or an MLflow run id.",
        autocompletion=complete_study,
    ),
]
OutputOption = Annotated[
    Path, typer.Option("-o", "--output", help="A .png, or a .npz with the samples.", callback=writable)
]
SolverOption = Annotated[
    str | None,
    typer.Option("--solver", help="NAME or NAME:KEY=VALUE,…, as `ipndm:order=2` (default: the model's own)."),
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Sampling steps of the grid; with a lower --nfe it is left early."),
]


@command(EXPERIMENTS, "gpm-tune train best.yaml", "gpm-tune train gan.yaml --set experiment.seed=1")
def train(
    file: FileArgument,
    overrides: SetOption = None,
    name: NameOption = None,
    device: DeviceOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Train one experiment alone, without Ray; the same command again continues it."""
    from gpm_tune.study.definition.specification import check_name, load_experiment
    from gpm_tune.study.running.single import train as train_experiment
    from gpm_tune.training.machine import choose_device

    document = load(file, overrides)
    experiment = load_experiment(document)
    trained = train_experiment(
        experiment,
        check_name(name or file.stem),
        home_at(home, tracking_uri),
        choose_device(device),
        output.progress,
    )
    output.result(trained.plain(), trained.lines())
    if not trained.finished:
        output.advise("interrupted; continue with", f"  {this_command()}")
        raise typer.Exit(INTERRUPTED)


@command(EXPERIMENTS, "gpm-tune models")
def models() -> None:
    """Show the taxonomy: every model, its flow, its generator, its knobs, its place in the paper."""
    from gpm_tune.study.views.experiments import taxonomy, taxonomy_table

    output.result(taxonomy(), [taxonomy_table()])


@command(EXPERIMENTS, "gpm-tune describe gan.yaml", "gpm-tune describe edm_celeba.yaml --json")
def describe(
    file: FileArgument,
    overrides: SetOption = None,
) -> None:
    """Show the networks of an experiment, the FLOPs of a training step and of a sample, and the memory."""
    from gpm_tune.study.definition.specification import load_experiment
    from gpm_tune.study.views.experiments import description_table
    from gpm_tune.training.description import describe as describe_experiment

    description = describe_experiment(load_experiment(load(file, overrides)))
    output.result(description.plain(), description_table(description))


@command(
    EXPERIMENTS,
    "gpm-tune sample discr_flow -o grid.png",
    "gpm-tune sample discr_flow/7 -o samples.npz --n 10000 --nfe 16 --seed 1",
)
def sample(
    run: RunArgument,
    file: OutputOption,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples.")] = 64,
    nfe: NFEOption = None,
    solver: SolverOption = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Sample from the best weights of a run."""
    from gpm_tune.study.accounts.runs import model_of
    from gpm_tune.training.generation import write_samples

    saved = model_of(run, home_at(home, tracking_uri))
    sampler = _sampler(saved, nfe, solver, steps, device)
    cost = write_samples(sampler, file, n=n, seed=seed)
    output.result(
        {"file": str(file), "samples": n, "solver": sampler.solver_name, "nfe": cost, "seed": seed}
        | _weights(saved),
        [
            f"{n} samples in {file}: {sampler.solver_name}, NFE {cost}, seed {seed}, from {saved.folder}, "
            f"weights of step {saved.step}"
        ],
    )


@command(
    EXPERIMENTS,
    "gpm-tune evaluate discr_flow --nfe 1 2 4 8",
    "gpm-tune evaluate edm/3 --solver euler heun --nfe 8 16 32 --split test --resamples 100",
    lists=True,
)
def evaluate(
    run: RunArgument,
    nfe: Annotated[
        list[int] | None, typer.Option("--nfe", min=1, help="NFE, one or several (`--nfe 4 8 16`).")
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", help="Solvers, one or several (`--solver euler ipndm:order=2`)."),
    ] = None,
    split: SplitOption = "validation",
    samples: SamplesOption = None,
    steps: StepsOption = None,
    resamples: ResamplesOption = 0,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Metrics, one or several (`--metric fid kid`); else the experiment's."),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Measure the best weights of a run, at several NFE and with several solvers."""
    from gpm_tune.study.accounts.runs import model_of
    from gpm_tune.study.views.experiments import measurements_table
    from gpm_tune.training.machine import choose_device
    from gpm_tune.training.sweep import Conditions
    from gpm_tune.training.sweep import evaluate as evaluate_model

    place = home_at(home, tracking_uri)
    saved = model_of(run, place)
    measurements = evaluate_model(
        saved,
        nfe=nfe or (),
        solvers=solver or (),
        steps=steps,
        conditions=Conditions(split, samples, seed, resamples, tuple(metric or ())),
        cache=place.cache,
        device=choose_device(device),
    )
    output.result(
        [measurement.plain() | _weights(saved) for measurement in measurements],
        [
            measurements_table(measurements),
            f"checkpoint: {saved.folder}, weights of step {saved.step}",
        ],
    )


@command(EXPERIMENTS, "gpm-tune interpolate gan -o rows.png --method spherical --rows 8 --columns 10")
def interpolate(
    run: RunArgument,
    file: OutputOption,
    method: Annotated[
        str, typer.Option(help="linear, spherical, cauchy-linear or spherical-cauchy-linear.")
    ] = "spherical",
    rows: Annotated[int, typer.Option(min=1, help="Pairs of end points.")] = 8,
    columns: Annotated[int, typer.Option(min=2, help="Samples from one end to the other.")] = 8,
    nfe: NFEOption = None,
    solver: SolverOption = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Interpolate between the noises, or prior points, from which samples are made."""
    from gpm_tune.study.accounts.runs import model_of
    from gpm_tune.training.generation import write_interpolation

    saved = model_of(run, home_at(home, tracking_uri))
    sampler = _sampler(saved, nfe, solver, steps, device)
    write_interpolation(sampler, file, rows=rows, columns=columns, seed=seed, method=method)
    output.result(
        {"file": str(file), "rows": rows, "columns": columns, "method": method, "seed": seed}
        | _weights(saved),
        [f"{rows} x {columns} interpolations in {file}: {method}, seed {seed}, from {saved.folder}"],
    )


def _weights(saved: SavedModel) -> dict[str, object]:
    """Which weights are used: those of a run's best evaluation, which may be older than their checkpoint."""
    return {"checkpoint": str(saved.folder), "step": saved.step}


def _sampler(
    saved: SavedModel, nfe: int | None, solver: str | None, steps: int | None, device: str | None
) -> ModelSampler:
    """A trained model, on the device that was chosen."""
    from gpm_tune.training.generation import load_sampler
    from gpm_tune.training.machine import choose_device

    return load_sampler(saved, nfe=nfe, solver=solver, steps=steps, device=choose_device(device))
