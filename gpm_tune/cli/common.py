"""What all commands share: the application, its options, and how things are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import gpm_tune
from gpm_tune.cli.output import ListsCommand, with_flags
from gpm_tune.config import SEEDS
from gpm_tune.errors import UserError
from gpm_tune.paths import expand
from gpm_tune.uris import without_secrets
from gpm_tune.version import __version__

if TYPE_CHECKING:
    from gpm_tune.documents import Document
    from gpm_tune.study.storage.home import Home

INTERRUPTED = 130
NO_RESULT = 1
BAD_INPUT = 2
BUG = 70
HELP = {"help_option_names": ["-h", "--help"]}

STUDIES = "Studies"
EXPERIMENTS = "Experiments and samples"
MACHINES = "Machines and clusters"
STARTING = "Starting off"


class Program(TyperGroup):
    """The program, whose complaints about its arguments show no passwords in them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):  # click's, of which typer has a copy of its own
                error.message = without_secrets(error.message)  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    cls=Program,
    help="Hyperparameter studies of generative particle models: how good, at which cost, which knobs matter.",
    epilog="Exit codes: 0 done, 1 no result, 2 bad input (nothing was started), 3 the cluster was lost, "
    "70 a bug, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def command(
    panel: str, *examples: str, name: str | None = None, lists: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of the program, with examples below its help.

    panel: the group in which the program's help lists it. lists: see ListsCommand.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app.command(
            name,
            cls=ListsCommand if lists else TyperCommand,
            epilog="\n".join(["Examples:", *(f"  {example}" for example in examples)]),
            rich_help_panel=panel,
        )(with_flags(function))
        return function

    return register


def complete_file(incomplete: str) -> list[str]:
    """For the shell: study files here, and the bare names of those that come with the program."""
    beside = Path(gpm_tune.__file__).parent
    folders = [Path(), beside / "search_spaces", beside.parent / "search_spaces"]
    names = {file.name for folder in folders for file in folder.glob("*.yaml")}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_study(ctx: typer.Context, incomplete: str) -> list[str]:
    """For the shell: the studies of a home, by their folders, so that no database is opened."""
    root = ctx.params.get("home") or os.environ.get("GPM_TUNE_HOME") or "gpm-runs"
    with suppress(UserError):
        return sorted(folder.name for folder in (expand(root) / "studies").glob(f"{incomplete}*"))
    return []


StudyFileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY.yaml", help="A study file, or its bare name.", autocompletion=complete_file
    ),
]
FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY.yaml|EXPERIMENT.yaml", help="A file, or its bare name.", autocompletion=complete_file
    ),
]
StudyArgument = Annotated[str, typer.Argument(help="A study's name.", autocompletion=complete_study)]

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
        "--tracking-uri",
        help="MLflow's store; one with a password is better set in the environment (default: "
        "$MLFLOW_TRACKING_URI, else HOME/mlflow.db).",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, as often as needed."),
]
NameOption = Annotated[str | None, typer.Option("--name", help="Override the name.")]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URI",
        help="What all nodes share: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or a folder (default: "
        "$GPM_TUNE_STORAGE, else none).",
    ),
]
AddressOption = Annotated[
    str, typer.Option(help="`local` starts Ray here, `auto` or HOST:PORT joins a cluster.")
]
ClusterOption = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="Do it on the cluster that `ray up FILE` has brought up, through SSH.",
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="[LABEL=]RUN...",
        help="STUDY (its best trial), STUDY/TRIAL, a training run or its folder, an MLflow run id; "
        "LABEL names it in the figure.",
    ),
]
FigureOption = Annotated[
    Path, typer.Option("-o", "--output", help="Where to write: OUTPUT.csv, OUTPUT.png and OUTPUT.svg.")
]
NFEOption = Annotated[
    int | None, typer.Option("--nfe", min=1, help="Evaluations per sample (default: the model's full NFE).")
]
SplitOption = Annotated[str, typer.Option(help="`validation` or `test`.")]
SamplesOption = Annotated[
    int | None, typer.Option(min=2, help="Generated samples (default: the experiment's).")
]
ResamplesOption = Annotated[
    int, typer.Option(min=0, help="Bootstrap resamples behind standard errors over samples; 0 for none.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=SEEDS - 1, help="Of the noise.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="`cpu` or `cuda` (default: cuda where there is one).")
]


CLUSTER_SETTINGS = {
    "home": "GPM_TUNE_HOME",
    "storage": "GPM_TUNE_STORAGE",
    "tracking_uri": "MLFLOW_TRACKING_URI",
}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gpm-tune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # handled by its callback


def load(
    file: Path, overrides: list[str] | None, *, trials: int | None = None, name: str | None = None
) -> Document:
    """The document of a file, with what the command line overrides."""
    from gpm_tune.study.definition.specification import open_file

    return override(open_file(file), overrides, trials=trials, name=name)


def override(
    document: Document, overrides: list[str] | None, *, trials: int | None = None, name: str | None = None
) -> Document:
    """The document with what the command line overrides."""
    if trials is not None:
        document.assign("budget.trials", trials, "--trials")
    if name is not None:
        document.assign("name", name, "--name")
    for spec in overrides or []:
        document.set(spec)
    return document


def home_at(root: Path | None, tracking_uri: str | None = None, storage: str | None = None) -> Home:
    """Where everything is."""
    from gpm_tune.study.storage.home import Home

    return Home(root, tracking_uri, storage)


def writable(file: Path | None) -> Path | None:
    """A file that is to be written. Raises UserError where that is impossible, before any work."""
    if file is None:
        return None
    file = expand(file)
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{file}: {'is a folder' if file.is_dir() else 'cannot be written'}")
    return file


def this_command() -> str:
    """The command line, to be typed again."""
    from shlex import join

    return join(["gpm-tune", *map(without_secrets, sys.argv[1:])])


def refuse_beside_cluster(cluster: Path, **options: object) -> None:
    """Raise UserError where an option was given that names another place than the cluster's file does."""
    for name, given in options.items():
        if given:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} cannot be combined with --cluster: {cluster} says where its studies are and run\n"
                f"help: leave {option} out, or set {CLUSTER_SETTINGS[name]} in {cluster}"
            )


def is_done_on(cluster: Path | None, home: Path | None) -> bool:
    """Whether this command was for a cluster: then it has been run on its head.

    It ends with exit code 1 where it fails there.
    """
    if cluster is None:
        return False
    refuse_beside_cluster(cluster, home=home)
    from shutil import get_terminal_size

    from gpm_tune.console import LOG_WIDTH
    from gpm_tune.study.cluster.remote import Cluster

    words = [word for word in sys.argv[1:] if not word.startswith("--cluster=")]
    if "--cluster" in words:
        start = words.index("--cluster")
        del words[start : start + 2]
    width = get_terminal_size((LOG_WIDTH, 0)).columns
    if not Cluster(cluster).run(["env", f"COLUMNS={width}", "gpm-tune", *words]):
        raise typer.Exit(NO_RESULT)
    return True
