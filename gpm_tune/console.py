"""Where people are shown tables and progress: a terminal, a log file or a notebook."""

from __future__ import annotations

from importlib.util import find_spec

from rich.console import Console

LOG_WIDTH = 120


def new_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console on the standard output, or error; one that is quiet prints nothing."""
    console = Console(stderr=stderr, quiet=quiet)
    if has_bars(console):
        return console
    # A log file has no edge: tables there get the room they need. A notebook takes plain lines for one text.
    return Console(stderr=stderr, quiet=quiet, width=LOG_WIDTH, force_jupyter=False, force_terminal=False)


def has_bars(console: Console) -> bool:
    """Whether progress is shown as bars that move; elsewhere it is lines, one after the other."""
    # Rich moves bars in a notebook by ipywidgets.
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
