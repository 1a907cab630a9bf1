"""The command line: parse, call, print. Libraries are imported by the command that needs them."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

import typer

# The help lists commands in the order of these imports.
# isort: off
from gpm_tune.cli import studies, reports, experiments, starting, cluster, migration

# isort: on
from gpm_tune.cli.common import BAD_INPUT, BUG, HELP, INTERRUPTED, NO_RESULT, app
from gpm_tune.cli.output import ListsCommand, output, with_flags
from gpm_tune.errors import FULL, DivergedError, ScarcityError, UserError, escaped, first_line, no_space
from gpm_tune.interrupts import exit_code, terminable
from gpm_tune.uris import URI, without_secrets

__all__ = ["app", "cluster", "experiments", "main", "migration", "reports", "script", "starting", "studies"]


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
    _hide_arguments()
    try:
        with terminable():
            application()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(exit_code())
    except SystemExit as end:
        sys.exit(exit_code() if end.code == INTERRUPTED else end.code)
    except Exception as error:
        code, message = _judge(error)
        if output.verbose or code == BUG:
            lines = without_secrets(traceback.format_exc()).splitlines()
            print(*map(escaped, lines), sep="\n", file=sys.stderr)
        for line in map(escaped, without_secrets(message).splitlines()):
            print(line if line.startswith("help: ") else f"error: {line}", file=sys.stderr)
        sys.exit(code)


def _hide_arguments() -> None:
    """Start the process again, if a URI among its arguments has secrets: everybody can list those.

    The environment has the URI then, and the arguments its text, as does the advice to repeat the command.
    """
    words, environment = sys.argv[1:], dict(os.environ)
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option != "--tracking-uri" or (not equals and place + 1 == len(words)):
            continue
        uri = URI(value if equals else words[place + 1])
        words[place if equals else place + 1] = f"{option}={uri}" if equals else str(uri)
        if str(uri) != uri.secret():
            environment["MLFLOW_TRACKING_URI"] = uri.secret()
    own = len(sys.orig_argv) - len(words)
    if words != sys.argv[1:] and sys.orig_argv[own:] == sys.argv[1:]:
        os.execve(sys.executable, [*sys.orig_argv[:own], *words], environment)


def _judge(error: Exception) -> tuple[int, str]:
    """The exit code for an error, and what a person is told."""
    if isinstance(error, ScarcityError):
        return NO_RESULT, str(error)
    if isinstance(error, UserError):
        return BAD_INPUT, str(error)
    if isinstance(error, DivergedError):
        return NO_RESULT, f"training diverged: {error}"
    if isinstance(error, OSError) and error.errno in FULL:
        return NO_RESULT, str(ScarcityError(no_space(error.filename or "what is written")))
    if isinstance(error, OSError) and error.filename is not None:
        # A name that no file can have is bad input; what else a machine refuses is its trouble.
        code = BAD_INPUT if error.errno == errno.ENAMETOOLONG else NO_RESULT
        return code, f"{error.filename}: {error.strerror}"
    if type(error).__module__ == "mlflow.exceptions":
        return NO_RESULT, (
            f"MLflow's store cannot be used: {first_line(error)}\nhelp: gpm-tune doctor says more of it; run "
            "the command again once the store answers"
        )
    from gpm_tune.plugins import failure

    if sentence := failure(error):  # an OSError about which nothing better can be said
        return BAD_INPUT, sentence
    return BUG, f"{type(error).__name__}: a bug of gpm-tune; please report it with the lines above"
