"""The command line: parse, call, print. Libraries are imported by the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from gpm_tune.cli import studies

# isort: split
# The help lists commands in the order of these imports: studies first.
from gpm_tune.cli import cluster, experiments, reports, starting
from gpm_tune.cli.common import BAD_INPUT, HELP, INTERRUPTED, NO_RESULT, ListsCommand, app
from gpm_tune.errors import DivergedError, UserError

__all__ = ["app", "cluster", "experiments", "main", "reports", "script", "starting", "studies"]


def main() -> None:
    """Run the command line: one message and exit code 2 for bad input, 130 for an interrupt."""
    run(app)


def script(function: Callable[..., None]) -> None:
    """Run a script's function as a command line of its own, with its parameters as options."""
    own = typer.Typer(pretty_exceptions_enable=False, add_completion=False, context_settings=HELP)
    own.command(cls=ListsCommand)(function)
    run(own)


def run(command: Callable[[], object]) -> None:
    """Call it, and turn what users can mend into a message and an exit code."""
    try:
        command()
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
