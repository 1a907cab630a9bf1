"""The exceptions of the package that are meant for a person to read, and how others are said in a line."""

from __future__ import annotations

import errno
import math
import re
import shutil
from pathlib import Path
from traceback import extract_tb

MIGRATE = "help: convert what version 0.1 left: gpm-tune migrate [--home H] [--storage S]"


class UserError(Exception):
    """Bad input: what is wrong, where, what was expected, what to do. The CLI prints it, exit code 2."""


class UnknownError(UserError):
    """A name for which there is nothing: a slip, that must not be passed over."""


class OtherDataError(UserError):
    """The data are not those from which something that is kept was made: it must not be mixed with them."""


class ScarcityError(UserError):
    """A disk that is full, or a database that others keep locked: no input is at fault; exit code 1.

    Its text has the advice; `args[0]` is what is scarce, without it.
    """

    def __str__(self) -> str:
        return f"{super().__str__()}\nhelp: nothing is lost; once that is fixed, the same command goes on"


class DivergedError(Exception):
    """A training run that cannot go on because numbers stopped being finite; the text is the reason."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
LEAST_FREE = 2**24  # bytes: a disk that fails for a reason that a library hides, and has less, is full
DISK_FAILS = re.compile(r"disk I/O error|os error \d+|inline_container")  # of SQLite, safetensors, torch


def is_full(error: BaseException, place: Path) -> bool:
    """Tell whether an error means that the disk of a place, which need not exist, is full."""
    if isinstance(error, OSError):
        return error.errno in FULL
    text = str(error)
    return "disk is full" in text or (bool(DISK_FAILS.search(text)) and _free(place) < LEAST_FREE)


def no_space(place: object) -> str:
    """The words for a disk that is full."""
    return f"no space is left on the disk of {place}"


def _free(place: Path) -> float:
    """Bytes; infinity where that is not known."""
    try:
        return shutil.disk_usage(place if place.is_dir() else place.parent).free
    except OSError:
        return math.inf


def escaped(text: str) -> str:
    """A text on one line, without what a terminal might obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    return (str(error).strip().splitlines() or [""])[0]


def on_one_line(error: BaseException) -> str:
    """An error's kind and what it says, on one line."""
    return escaped(f"{type(error).__name__}: {error}".rstrip(": "))


def origin(error: BaseException) -> str:
    """The file and the line, `file.py:12`, that raised an error."""
    where = extract_tb(error.__traceback__)[-1]
    return f"{Path(where.filename).name}:{where.lineno}"


def damage(data: str, reason: str) -> str:
    """What is said of a data set, by its name, whose files are damaged."""
    return f"the data set {data} is damaged ({reason})\nhelp: delete it, and it is fetched again"
