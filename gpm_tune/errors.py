"""The exceptions of the package that are meant for a person to read, and how others are said in a line."""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb


class UserError(Exception):
    """Bad input: what is wrong, where, what was expected, what to do. The CLI prints it, exit code 2."""


class UnknownError(UserError):
    """A name for which there is nothing: a slip, that must not be passed over."""


class OtherDataError(UserError):
    """The data are not those from which something that is kept was made: it must not be mixed with them."""


class ScarcityError(UserError):
    """A disk that is full, or a database that others keep locked: no input is at fault; exit code 1."""


class DivergedError(Exception):
    """A training run that cannot go on because numbers stopped being finite; the text is the reason."""


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
