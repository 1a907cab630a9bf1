"""What all commands share: the application, its options, and how things are shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from gpm_tune.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from gpm_tune.documents import Document
    from gpm_tune.study.storage.home import Home

INTERRUPTED = 130
NO_RESULT = 1
BAD_INPUT = 2
LOG_WIDTH = 120
HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    help="Hyperparameter studies of generative particle models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="[LABEL=]RUN...",
        help="STUDY (its best trial), STUDY/TRIAL, an MLflow run id, or a checkpoint's folder; "
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
    from gpm_tune.documents import Document
    from gpm_tune.study.definition.specification import find_file, include_teacher

    document = Document.load(find_file(file))
    include_teacher(document)
    if trials is not None:
        document.assign("budget.trials", trials, "--trials")
    if name is not None:
        document.assign("name", name, "--name")
    for assignment in overrides or []:
        document.set(assignment)
    return document


def home_at(root: Path | None, tracking_uri: str | None = None, storage: str | None = None) -> Home:
    """Where everything is."""
    from gpm_tune.study.storage.home import Home

    return Home(root, tracking_uri, storage)


def this_command() -> str:
    """The command line, to be typed again."""
    from shlex import join

    return join(["gpm-tune", *sys.argv[1:]])


def is_done_on(cluster: Path | None) -> bool:
    """Whether this command was for a cluster: then it has been run on its head.

    It ends with exit code 1 where it fails there.
    """
    if cluster is None:
        return False
    from shutil import get_terminal_size

    from gpm_tune.study.cluster.remote import Cluster

    words = [word for word in sys.argv[1:] if not word.startswith("--cluster=")]
    if "--cluster" in words:
        start = words.index("--cluster")
        del words[start : start + 2]
    width = get_terminal_size((LOG_WIDTH, 0)).columns
    if not Cluster(cluster).run(["env", f"COLUMNS={width}", "gpm-tune", *words]):
        raise typer.Exit(NO_RESULT)
    return True


def new_console() -> Console:
    """A console for this output."""
    from rich.console import Console

    console = Console()
    # A log file has no edge: tables there get the room they need.
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def show(*things: object) -> None:
    """Print tables and lines."""
    console = new_console()
    for thing in things:
        console.print(thing, highlight=False, markup=False)


def print_json(data: object) -> None:
    """Print plain data."""
    import json

    print(json.dumps(data, indent=2))
