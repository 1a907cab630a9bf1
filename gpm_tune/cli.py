"""The command line: parse, call, print. Libraries are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import gpm_tune
from gpm_tune.errors import DivergedError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from gpm_tune.documents import Document
    from gpm_tune.study.home import Home
    from gpm_tune.study.specification import Study

INTERRUPTED = 130
NO_RESULT = 1
BAD_INPUT = 2
LOG_WIDTH = 120

app = typer.Typer(
    help="Hyperparameter studies of generative particle models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder for everything that is written (default: $GPM_TUNE_HOME, else ./gpm-runs).",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", help="MLflow's store (default: $MLFLOW_TRACKING_URI, else HOME/mlflow.db)."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, as often as needed."),
]
NameOption = Annotated[str | None, typer.Option("--name", help="Override the name.")]
AddressOption = Annotated[
    str, typer.Option(help="`local` starts Ray here, `auto` or HOST:PORT joins a cluster.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A checkpoint's folder, or an MLflow run id.")
]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="A .png, or a .npz with the samples.")]
NFEOption = Annotated[
    int | None, typer.Option("--nfe", min=1, help="Evaluations per sample (default: the model's full NFE).")
]
SolverOption = Annotated[
    str | None, typer.Option("--solver", help="`euler`, `heun` or `langevin` (default: the model's own).")
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Sampling steps of the grid; with a lower --nfe it is left early."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the noise.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="`cpu` or `cuda` (default: cuda where there is one).")
]


class ListsCommand(TyperCommand):
    """A command whose repeatable options also take several values at once: `--nfe 4 8 16`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        expanded: list[str] = []
        option, has_value = "", False
        for word in args:
            if word.startswith("-"):
                option, has_value = (word if word in repeatable else ""), False
            elif option and has_value:
                expanded.append(option)
            else:
                has_value = True
            expanded.append(word)
        return super().parse_args(ctx, expanded)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gpm-tune {gpm_tune.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # handled by its callback


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study file, or its bare name.")],
    overrides: SetOption = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all: budget.trials.")] = None,
    name: NameOption = None,
    address: AddressOption = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run, and start nothing.")
    ] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Run a study to the end of its budget; the same command again continues it."""
    from gpm_tune.study.specification import load_study

    document = _load(file, overrides, trials=trials, name=name)
    study = load_study(document)
    if dry_run:
        from gpm_tune.study.preview import show

        show(study, _console())
        return
    _run(study, _home(home, tracking_uri), address)


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    trials: Annotated[int | None, typer.Option(help="Trials in all: adds some to a finished study.")] = None,
    address: AddressOption = "local",
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Continue a study where it stands: after Ctrl-C, a crash or a reboot, or with more trials."""
    from gpm_tune.study.records import read_study
    from gpm_tune.study.specification import load_study

    place = _home(home, tracking_uri)
    read_study(place.optuna_uri, study)
    document = _load(place.study(study) / "study.yaml", None, trials=trials)
    _run(load_study(document), place, address)


def _run(study: Study, place: Home, address: str) -> None:
    from gpm_tune.study.records import read_study
    from gpm_tune.study.results import report
    from gpm_tune.study.run import run_study

    console = _console()
    finished = run_study(study, place, address, console)
    record = read_study(place.optuna_uri, study.name)
    _print(*report(place.optuna_uri, record))
    print(f"results in {place.study(study.name)}; open them in MLflow with\n  {_ui_command(place)}")
    if not finished:
        print(f"interrupted; continue with\n  {_this_command()}")
        raise typer.Exit(INTERRUPTED)
    if not record.ranked():
        raise typer.Exit(NO_RESULT)


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
    from gpm_tune.study.runs import choose_device
    from gpm_tune.study.single import train as train_experiment
    from gpm_tune.study.specification import load_experiment

    document = _load(file, overrides)
    experiment = load_experiment(document)
    finished = train_experiment(
        experiment,
        name or file.stem,
        _home(home, tracking_uri),
        choose_device(device),
        _console(),
    )
    if not finished:
        print(f"interrupted; continue with\n  {_this_command()}")
        raise typer.Exit(INTERRUPTED)


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="A study's name; all studies if left out.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until the study has ended.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks, with --watch.")] = 5.0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show how studies stand."""
    if watch:
        _watch(study, _home(home), interval)
        return
    from gpm_tune.study.records import read_study, study_names
    from gpm_tune.study.results import plain, report, studies_table

    storage = _home(home).optuna_uri
    if study and not as_json:
        _print(*report(storage, read_study(storage, study)))
        return
    records = [read_study(storage, name) for name in ([study] if study else study_names(storage))]
    if as_json:
        data = [plain(record) for record in records]
        _print_json(data[0] if study else data)
    else:
        _print(studies_table(records))


def _watch(study: str | None, place: Home, interval: float) -> None:
    """Show a study whenever something has changed, for as long as some process runs it."""
    from time import sleep

    from gpm_tune.study.manage import is_running
    from gpm_tune.study.records import read_study
    from gpm_tune.study.results import report

    if study is None:
        raise UserError("--watch follows one study: name it")
    shown = ""
    while True:
        goes_on = is_running(place, study)
        console = _console()
        with console.capture() as text:
            for thing in report(place.optuna_uri, read_study(place.optuna_uri, study)):
                console.print(thing, highlight=False, markup=False)
        if text.get() != shown:
            shown = text.get()
            if console.is_terminal:
                console.clear()
            print(shown, end="", flush=True)
        if not goes_on:
            return
        sleep(interval)


@app.command("list")
def list_studies(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show all studies."""
    status(None, as_json=as_json, home=home)


@app.command()
def stop(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    wait: Annotated[bool, typer.Option(help="Wait until it has stopped.")] = True,
    home: HomeOption = None,
) -> None:
    """Ask a running study to stop, as its first Ctrl-C would, from any process that shares HOME."""
    from gpm_tune.study.manage import stop as stop_study

    if not stop_study(_home(home), study, wait):
        print(f"study '{study}' is not running")
    else:
        print(f"study '{study}' {'has stopped' if wait else 'is asked to stop'}; continue it with")
        print(f"  gpm-tune resume {study}")


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(help="Names of studies.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show studies side by side, each by its best trial."""
    from gpm_tune.study.manage import comparison
    from gpm_tune.study.records import read_study
    from gpm_tune.study.results import best_plain

    records = [read_study(_home(home).optuna_uri, name) for name in studies]
    table = comparison(records)
    if as_json:
        _print_json([best_plain(record) for record in records])
    else:
        _print(table)


@app.command()
def delete(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Delete a study: its trials, checkpoints and tracked runs."""
    from gpm_tune.study.manage import delete as delete_study
    from gpm_tune.study.records import read_study

    place = _home(home, tracking_uri)
    record = read_study(place.optuna_uri, study)
    question = f"Delete study '{study}', its {len(record.trials)} trials and their checkpoints?"
    if not yes and not sys.stdin.isatty():
        raise UserError(f"{question} Say so with --yes")
    if not yes and not typer.confirm(question):
        return
    delete_study(place, study)
    print(f"study '{study}' is deleted")


@app.command()
def best(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its experiment, for `gpm-tune train`."),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show the best trial of a study."""
    from gpm_tune.study.records import read_study
    from gpm_tune.study.results import best_plain, best_yaml, trials_table

    record = read_study(_home(home).optuna_uri, study)
    data = best_plain(record)
    if export:
        export.write_text(best_yaml(record), encoding="utf-8")
    if as_json:
        _print_json(data)
    else:
        _print(trials_table(record, limit=1), f"checkpoint: {data['checkpoint']}")
        if export:
            print(f"its experiment is in {export}; train it with\n  gpm-tune train {export}")


@app.command()
def models() -> None:
    """Show the taxonomy: every model, its flow, its generator, its knobs, its place in the paper."""
    from gpm_tune.study.tables import taxonomy_table

    _print(taxonomy_table())


@app.command()
def describe(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml|EXPERIMENT.yaml", help="A file, or its bare name.")
    ],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the networks of an experiment, the FLOPs of a training step and of a sample, and the memory."""
    from gpm_tune.study.specification import load_experiment
    from gpm_tune.study.tables import description_table
    from gpm_tune.training.description import describe as describe_experiment

    description = describe_experiment(load_experiment(_load(file, overrides)))
    if as_json:
        _print_json(description.plain())
    else:
        _print(*description_table(description))


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
    from gpm_tune.study.runs import checkpoint_of, choose_device
    from gpm_tune.training.generation import load_sampler, write_samples

    folder = checkpoint_of(run, _home(home, tracking_uri))
    sampler = load_sampler(folder, nfe=nfe, solver=solver, steps=steps, device=choose_device(device))
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
    split: Annotated[str, typer.Option(help="`validation` or `test`.")] = "validation",
    samples: Annotated[
        int | None, typer.Option(min=2, help="Generated samples (default: the experiment's).")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Measure the best weights of a run, at several NFE and with several solvers."""
    from gpm_tune.study.runs import checkpoint_of, choose_device
    from gpm_tune.study.tables import measurements_table
    from gpm_tune.training.generation import evaluate as evaluate_checkpoint

    place = _home(home, tracking_uri)
    folder = checkpoint_of(run, place)
    measurements = evaluate_checkpoint(
        folder,
        nfe=nfe or (),
        solvers=solver or (),
        split=split,
        samples=samples,
        seed=seed,
        cache=place.cache,
        device=choose_device(device),
    )
    if as_json:
        _print_json([measurement.plain() for measurement in measurements])
    else:
        _print(measurements_table(measurements), f"checkpoint: {folder}")


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
    from gpm_tune.study.runs import checkpoint_of, choose_device
    from gpm_tune.training.generation import load_sampler, write_interpolation

    folder = checkpoint_of(run, _home(home, tracking_uri))
    sampler = load_sampler(folder, nfe=nfe, solver=solver, steps=steps, device=choose_device(device))
    write_interpolation(sampler, output, rows=rows, columns=columns, seed=seed, method=method)
    print(f"{rows} x {columns} interpolations in {output}: {method}, seed {seed}, from {folder}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Open the MLflow UI on what was tracked, on 127.0.0.1."""
    place = _home(home, tracking_uri)
    if place.tracking_uri.startswith("http"):
        print(f"MLflow's UI is at {place.tracking_uri}")
        return
    if not place.is_tracked:
        raise UserError(f"{place.root}: nothing has been tracked here yet; see `gpm-tune run --help`")
    print(f"MLflow UI on http://127.0.0.1:{port}; Ctrl-C ends it", flush=True)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    arguments = ["server", "--backend-store-uri", place.tracking_uri, "--workers", "1"]
    arguments += ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def _load(
    file: Path, overrides: list[str] | None, *, trials: int | None = None, name: str | None = None
) -> Document:
    from gpm_tune.documents import Document
    from gpm_tune.study.specification import find_file, include_teacher

    document = Document.load(find_file(file))
    include_teacher(document)
    if trials is not None:
        document.assign("budget.trials", trials, "--trials")
    if name is not None:
        document.assign("name", name, "--name")
    for assignment in overrides or []:
        document.set(assignment)
    return document


def _home(root: Path | None, tracking_uri: str | None = None) -> Home:
    from gpm_tune.study.home import Home

    return Home(root, tracking_uri)


def _ui_command(home: Home) -> str:
    from shlex import quote

    return f"gpm-tune ui --home {quote(os.path.relpath(home.root))}"


def _this_command() -> str:
    from shlex import join

    return join(["gpm-tune", *sys.argv[1:]])


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A log file has no edge: tables there get the room they need.
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def _print(*things: object) -> None:
    console = _console()
    for thing in things:
        console.print(thing, highlight=False, markup=False)


def _print_json(data: object) -> None:
    import json

    print(json.dumps(data, indent=2))


def main() -> None:
    """Run the command line: one message and exit code 2 for bad input, 130 for an interrupt."""
    try:
        app()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except DivergedError as error:
        print(f"error: training diverged: {error}", file=sys.stderr)
        sys.exit(NO_RESULT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
