"""The command line: parse, call, print. Libraries are imported by the command that needs them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import typer

# The help lists commands in the order of these imports.
# isort: off
from gpm_tune.cli import studies, reports, experiments, starting, cluster

# isort: on
from gpm_tune.cli.common import BAD_INPUT, BUG, HELP, INTERRUPTED, NO_RESULT, app
from gpm_tune.cli.output import ListsCommand, output, with_flags
from gpm_tune.errors import DivergedError, UserError

__all__ = ["app", "cluster", "experiments", "main", "reports", "script", "starting", "studies"]


def main() -> None:
    """Run the command line; how it ends is said by the exit codes of `gpm-tune --help`."""
    run(app)


def script(function: Callable[..., None]) -> None:
    """Run a script's function as a command line of its own, with its parameters as options."""
    own = typer.Typer(pretty_exceptions_enable=False, add_completion=False, context_settings=HELP)
    own.command(cls=ListsCommand)(with_flags(function))
    run(own)


def run(application: Callable[[], object]) -> None:
    """Call it, and turn every error into a message and an exit code."""
    try:
        application()
    except UserError as error:
        sys.exit(_end(BAD_INPUT, str(error)))
    except DivergedError as error:
        sys.exit(_end(NO_RESULT, f"training diverged: {error}"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        sys.exit(
            _end(
                BUG,
                f"{type(error).__name__}: a bug of gpm-tune; please report it with the lines above",
            )
        )


def _end(code: int, message: str) -> int:
    """Say why the program ends, each line marked; with --verbose also where in the code it arose."""
    if output.verbose and code != BUG:
        traceback.print_exc()
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code
