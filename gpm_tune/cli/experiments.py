"""Commands on single experiments: trained, described, sampled, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpm_tune.cli.common import (
    INTERRUPTED,
    DeviceOption,
    HomeOption,
    JsonOption,
    ListsCommand,
    NameOption,
    NFEOption,
    ResamplesOption,
    SamplesOption,
    SeedOption,
    SetOption,
    SplitOption,
    TrackingOption,
    app,
    home_at,
    load,
    new_console,
    print_json,
    show,
    this_command,
)

if TYPE_CHECKING:
    from gpm_tune.training.generation import Sampler

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A checkpoint's folder, or an MLflow run id.")
]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="A .png, or a .npz with the samples.")]
SolverOption = Annotated[
    str | None, typer.Option("--solver", help="`euler`, `heun` or `langevin` (default: the model's own).")
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Sampling steps of the grid; with a lower --nfe it is left early."),
]


@app.command()
def train(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml|EXPERIMENT.yaml", help="A file, or its bare name.")
    ],
    overrides: SetOption = None,
    name: NameOption = None,
    device: DeviceOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Train one experiment alone, without Ray; the same command again continues it."""
    from gpm_tune.study.definition.specification import load_experiment
    from gpm_tune.study.running.single import train as train_experiment
    from gpm_tune.study.storage.runs import choose_device

    document = load(file, overrides)
    experiment = load_experiment(document)
    finished = train_experiment(
        experiment,
        name or file.stem,
        home_at(home, tracking_uri),
        choose_device(device),
        new_console(),
    )
    if not finished:
        print(f"interrupted; continue with\n  {this_command()}")
        raise typer.Exit(INTERRUPTED)


@app.command()
def models() -> None:
    """Show the taxonomy: every model, its flow, its generator, its knobs, its place in the paper."""
    from gpm_tune.study.views.tables import taxonomy_table

    show(taxonomy_table())


@app.command()
def describe(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml|EXPERIMENT.yaml", help="A file, or its bare name.")
    ],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the networks of an experiment, the FLOPs of a training step and of a sample, and the memory."""
    from gpm_tune.study.definition.specification import load_experiment
    from gpm_tune.study.views.tables import description_table
    from gpm_tune.training.description import describe as describe_experiment

    description = describe_experiment(load_experiment(load(file, overrides)))
    if as_json:
        print_json(description.plain())
    else:
        show(*description_table(description))


@app.command()
def sample(
    run: RunArgument,
    output: OutputOption,
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
    from gpm_tune.study.storage.runs import checkpoint_of
    from gpm_tune.training.generation import write_samples

    folder = checkpoint_of(run, home_at(home, tracking_uri))
    sampler = _sampler(folder, nfe, solver, steps, device)
    cost = write_samples(sampler, output, n=n, seed=seed)
    print(f"{n} samples in {output}: {sampler.solver_name}, NFE {cost}, seed {seed}, from {folder}")


@app.command(cls=ListsCommand)
def evaluate(
    run: RunArgument,
    nfe: Annotated[
        list[int] | None, typer.Option("--nfe", min=1, help="NFE, one or several (`--nfe 4 8 16`).")
    ] = None,
    solver: Annotated[
        list[str] | None, typer.Option("--solver", help="Solvers, one or several (`--solver euler heun`).")
    ] = None,
    split: SplitOption = "validation",
    samples: SamplesOption = None,
    steps: StepsOption = None,
    resamples: ResamplesOption = 0,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Measure the best weights of a run, at several NFE and with several solvers."""
    from gpm_tune.study.storage.runs import checkpoint_of, choose_device
    from gpm_tune.study.views.tables import measurements_table
    from gpm_tune.training.sweep import Conditions
    from gpm_tune.training.sweep import evaluate as evaluate_checkpoint

    place = home_at(home, tracking_uri)
    folder = checkpoint_of(run, place)
    measurements = evaluate_checkpoint(
        folder,
        nfe=nfe or (),
        solvers=solver or (),
        steps=steps,
        conditions=Conditions(split, samples, seed, resamples),
        cache=place.cache,
        device=choose_device(device),
    )
    if as_json:
        print_json([measurement.plain() for measurement in measurements])
    else:
        show(measurements_table(measurements), f"checkpoint: {folder}")


@app.command()
def interpolate(
    run: RunArgument,
    output: OutputOption,
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
    from gpm_tune.study.storage.runs import checkpoint_of
    from gpm_tune.training.generation import write_interpolation

    folder = checkpoint_of(run, home_at(home, tracking_uri))
    sampler = _sampler(folder, nfe, solver, steps, device)
    write_interpolation(sampler, output, rows=rows, columns=columns, seed=seed, method=method)
    print(f"{rows} x {columns} interpolations in {output}: {method}, seed {seed}, from {folder}")


def _sampler(
    folder: Path, nfe: int | None, solver: str | None, steps: int | None, device: str | None
) -> Sampler:
    """The best weights of a checkpoint, on the device that was chosen."""
    from gpm_tune.study.storage.runs import choose_device
    from gpm_tune.training.generation import load_sampler

    return load_sampler(folder, nfe=nfe, solver=solver, steps=steps, device=choose_device(device))
