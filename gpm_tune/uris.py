"""URIs of stores, which may hold passwords: their text shows none, whoever prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from gpm_tune.errors import UserError

MASK = "***"
DRIVER = "sqlite+pysqlite"
SHORTEST = 3  # characters of a secret's part; one of less says nothing, and is in every message
OF_FILES = re.compile(r"(sqlite|file)\b", re.IGNORECASE)  # their paths may have any character
LOGIN = re.compile(r".*@", re.DOTALL)  # passwords may have an / or an @ of their own
QUERY_SIGN = re.compile("[?#;]")
QUERY = re.compile(r"[?#;][^=]*=.*", re.DOTALL)
SENSITIVE = re.compile("pass|pwd|token|key|secret|sig|auth|cred", re.IGNORECASE)  # names in a query
QUERY_OF_FILES = re.compile(r"\?[^/]*=.*", re.DOTALL)
IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*:/\S+")

_secrets: frozenset[str] = frozenset()  # of all URIs of this process, and their parts


class URI:
    """A URI, or a path, whose text has neither login nor query; only `secret` has them.

    `without_secrets` knows them, too.
    """

    def __init__(self, text: str) -> None:
        global _secrets
        self._text = text
        self._shown, hidden = _split(text)
        _secrets |= {form for secret in hidden for form in _forms(secret)}

    @classmethod
    def chosen(cls, given: str, environment: str | None) -> URI:
        """What a person gave, which may be the text of the environment's.

        Raises UserError where it is the text of another one.
        """
        if MASK not in given:
            return cls(given)
        if environment and str(cls(environment)) == given:
            return cls(environment)
        raise UserError(
            f"--tracking-uri {given}: {MASK} stands for what was not shown\n"
            "help: set MLFLOW_TRACKING_URI to the whole URI"
        )

    def secret(self) -> str:
        """The whole URI: for what opens it, not for messages, logs or the arguments of processes."""
        return self._text

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"URI({self._shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, URI) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def without_secrets(text: str) -> str:
    """A text of others, such as an error, with its URIs as they may be shown.

    What `URI` hides, and every part of it, is masked elsewhere in the text, too: libraries quote the half of
    a password that they take for a port.
    """
    text = IN_TEXT.sub(lambda found: _split(found[0])[0], text)
    folded = text.casefold()
    for secret in sorted((known for known in _secrets if known.casefold() in folded), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text, flags=re.IGNORECASE)
    return text


def sqlite_uri(file: Path) -> str:
    """The URI of a SQLite file for Optuna and MLflow, in which `?`, `#` and `%` mean something else."""
    from sqlalchemy import URL

    url = URL.create("sqlite", database=str(file))
    plain = url.render_as_string(hide_password=False)
    # Where no driver is named, MLflow makes the folder that it reads there, %3F and all.
    is_as_read = plain == f"sqlite:///{file}"
    return plain if is_as_read else url.set(drivername=DRIVER).render_as_string(hide_password=False)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI; None for a store that has none, such as a server.

    Raises UserError where it is not a URI of SQLite.
    """
    if not uri.startswith(("sqlite:", f"{DRIVER}:")):
        return None
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        database = make_url(uri).database
    except ArgumentError:
        raise UserError(f"{URI(uri)}: is no URI of a database\nhelp: give sqlite:///FILE") from None
    return Path(database) if database else None


def _split(text: str) -> tuple[str, list[str]]:
    """What may be shown of a URI, and what may not."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    is_of_files, is_path = OF_FILES.match(scheme), rest.startswith(("/", ".", "~"))
    if is_path and not separator:
        return text, []
    kept = rest.lstrip("/")
    lead, login = rest[: len(rest) - len(kept)], None if is_path and is_of_files else LOGIN.match(kept)
    if login and QUERY_SIGN.search(login[0]):  # which may be of a password, or begin a query with an @
        return f"{scheme}{separator}{MASK}", [kept]
    hidden = []
    if login:
        user, colon, password = login[0][:-1].partition(":")
        hidden.append(password if colon else user)  # a token stands alone
        kept = f"{MASK}@{kept[login.end() :]}"
    query = (QUERY_OF_FILES if is_of_files else QUERY).search(kept)
    if query:
        pairs = [part.partition("=") for part in re.split("[?#;&]", query[0])]
        hidden += [value for name, _, value in pairs if SENSITIVE.search(name)]
        kept = f"{kept[: query.start()]}{query[0][0]}{MASK}"
    return f"{scheme}{separator}{lead}{kept}", hidden


def _forms(secret: str) -> Iterator[str]:
    """How a message may quote a secret: whole or in parts, encoded or not."""
    for text in {secret, unquote(secret), unquote_plus(secret)}:
        for part in {text, *re.split(r"[/?#@:&;,=\s]+", text)}:
            if len(part) >= SHORTEST:
                yield from (part, quote(part, safe=""), quote_plus(part), repr(part)[1:-1])
