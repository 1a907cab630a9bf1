"""How commands answer: to a person, to a program (--json), or as briefly as they can (--quiet)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from gpm_tune.paths import expand
from gpm_tune.uris import without_secrets

if TYPE_CHECKING:
    from rich.console import Console

FLAGS = {
    "json": Annotated[
        bool,
        typer.Option("--json", help="Print the result as JSON; progress goes to the standard error."),
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="Print what was asked for only: no progress, no advice.")
    ],
    "verbose": Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print logs, Ray's too, and where an error arose."),
    ],
}


DETAILED = "%(asctime)s %(name)s: %(message)s"


class Masked(logging.Formatter):
    """Lines of a log without the secrets of URIs, whoever has written them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return without_secrets(super().format(record))


class Output:
    """What the flags of the command line have chosen."""

    json = quiet = verbose = False

    def choose(self, json: bool, quiet: bool, verbose: bool) -> None:
        """As the flags of a command say."""
        self.json, self.quiet, self.verbose = json, quiet, verbose
        handler = logging.StreamHandler()
        handler.setFormatter(Masked(DETAILED if verbose else "%(message)s", datefmt="%H:%M:%S"))
        logging.basicConfig(handlers=[handler])
        if verbose:
            for name in ("gpm_tune", "ray"):
                logging.getLogger(name).setLevel(logging.INFO)

    @property
    def flags(self) -> list[str]:
        """The flags, as they were given."""
        return [f"--{name}" for name in FLAGS if getattr(self, name)]

    @property
    def progress(self) -> Console:
        """Where progress is shown: bars on a terminal, lines in a log."""
        from gpm_tune.console import new_console

        return new_console(stderr=self.json, quiet=self.quiet)

    def result(self, data: object, things: Iterable[object]) -> None:
        """What the command was asked for: as plain data, or as tables and lines."""
        if self.json:
            import json

            print(json.dumps(without_nan(data), indent=2, allow_nan=False))
        else:
            show(*things)

    def log(self, text: str) -> None:
        """A piece of the log of something that runs elsewhere."""
        self.progress.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    def advise(self, *lines: str) -> None:
        """What a person may do next."""
        if not self.json and not self.quiet:
            print(*lines, sep="\n", flush=True)


output = Output()


def with_flags(function: Callable[..., None]) -> Callable[..., None]:
    """The function of a command with the flags of every command among its parameters."""

    @wraps(function)
    def call(*, json: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
        output.choose(json, quiet, verbose)
        try:
            function(**{name: expand(v) if isinstance(v, Path) else v for name, v in arguments.items()})
        except BaseException as error:
            from gpm_tune.plugins import is_of_plugin, named

            if isinstance(error, SystemExit) and is_of_plugin(function):
                raise  # a script of the plug-in's author ends as it says
            with named():
                raise

    hints = get_type_hints(function, include_extras=True)
    own = [
        p.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, p in signature(function).parameters.items()
    ]
    flags = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in FLAGS.items()
    ]
    setattr(call, "__signature__", Signature([*own, *flags]))  # noqa: B010 (functions declare none)
    return call


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


def without_nan(data: object) -> object:
    """Plain data with null for numbers that JSON does not have."""
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def show(*things: object) -> None:
    """Print tables and lines on the standard output."""
    from gpm_tune.console import new_console

    console = new_console()
    for thing in things:
        # A line is not broken: paths and commands in it are there to be copied.
        console.print(thing, highlight=False, markup=False, soft_wrap=isinstance(thing, str))


def written(files: Iterable[Path], *lines: str) -> None:
    """The result of a command that writes files, and for people what is worth saying besides."""
    names = [str(file) for file in files]
    output.result({"files": names}, [*lines, *names])
