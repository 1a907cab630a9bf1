"""The command line: parse, call, print. Libraries are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gpm_tune
from gpm_tune.errors import DivergedError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from gpm_tune.documents import Document
    from gpm_tune.study.home import Home

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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
    address: Annotated[
        str, typer.Option(help="`local` starts Ray here, `auto` or HOST:PORT joins a cluster.")
    ] = "local",
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
    console = _console()
    if dry_run:
        from gpm_tune.study.preview import show

        show(study, console)
        return
    from gpm_tune.study.ledger import read_study
    from gpm_tune.study.results import failures, trials_table
    from gpm_tune.study.run import run_study

    place = _home(home, tracking_uri)
    finished = run_study(study, place, address, console)
    record = read_study(place.optuna_uri, study.name)
    console.print(trials_table(record))
    for line in failures(record):
        console.print(line, highlight=False, markup=False)
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
    device: Annotated[
        str | None, typer.Option(help="`cpu` or `cuda` (default: cuda where there is one).")
    ] = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Train one experiment alone, without Ray; the same command again continues it."""
    from gpm_tune.study.single import choose_device
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
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show how studies stand."""
    from gpm_tune.study.ledger import read_study, study_names
    from gpm_tune.study.results import failures, plain, studies_table, trials_table

    storage = _home(home).optuna_uri
    names = [study] if study else study_names(storage)
    records = [read_study(storage, name) for name in names]
    if as_json:
        data = [plain(record) for record in records]
        _print_json(data[0] if study else data)
    elif study:
        _print(trials_table(records[0]), *failures(records[0]))
    else:
        _print(studies_table(records))


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
    from gpm_tune.study.ledger import read_study
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
    from gpm_tune.study.specification import find_file

    document = Document.load(find_file(file))
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
