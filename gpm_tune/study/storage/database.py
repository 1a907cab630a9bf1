"""SQLite files of the home: whether one can be used, and in a sentence why not."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from gpm_tune.errors import UserError
from gpm_tune.patience import causes, scarcity

BUSY_SECONDS = 2.0  # that an attempt waits for others; how long attempts are made is the patience's
ELSEWHERE = "or name another folder with --home, or GPM_TUNE_HOME"


def has_tables(file: Path, tables: Collection[str]) -> bool:
    """Whether a database is there, and has these tables. It is not created where there is none.

    Raises UserError where this user cannot read it, it is damaged, or of another program.
    """
    try:
        state = file.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}\nhelp: {_rights(file)}") from None
    if not stat.S_ISREG(state.st_mode):
        what = "a folder" if stat.S_ISDIR(state.st_mode) else "no file"
        raise UserError(f"{file}: is {what}, not a database\nhelp: move it away, {ELSEWHERE}")
    # Only SQLite may open it: any other descriptor of this process takes, when it is closed, all locks that
    # the process holds (sqlite.org/howtocorrupt.html, 2.2), and another process deletes the log in use.
    if not os.access(file, os.R_OK):
        raise UserError(f"{file}: cannot be read: {os.strerror(errno.EACCES)}\nhelp: {_rights(file)}")
    if not state.st_size:
        return False
    try:
        with closing(read_only(file)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            found = {name for (name,) in rows}
    except sqlite3.Error as error:
        if scarcity(error, file):  # who uses it waits
            return True
        raise explained(error, file) or error from error
    if found and not found & set(tables):
        listed = ", ".join(sorted(found)[:3])
        raise UserError(f"{file}: is a database of another program, with tables {listed}\nhelp: {_AWAY}")
    return found.issuperset(tables)


def is_writable(file: Path) -> bool:
    """Whether this user can write a database: its file, and those that SQLite puts beside it."""
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)


def read_only(file: Path) -> sqlite3.Connection:
    """A connection that only reads; SQLite asks for write rights where one has them, or others write now."""
    unused = not is_writable(file) and not file.with_name(f"{file.name}-wal").exists()
    uri = f"file:{quote(str(file))}?mode=ro{'&immutable=1' if unused else ''}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)


def explained(error: BaseException, file: Path) -> UserError | None:
    """What SQLite, or what is built on it, has against a file; None where the error is another one."""
    for cause in causes(error):
        text = str(cause)
        if isinstance(cause, RuntimeError) and "table schema" in text:
            return UserError(f"{file}: {text}\nhelp: use the version that wrote it, {ELSEWHERE}")
        if isinstance(cause, json.JSONDecodeError):
            return _damaged(file, f"a value in it is no JSON: {text}")
        if not isinstance(cause, sqlite3.Error):
            continue
        if "malformed" in text or "not a database" in text:
            return _damaged(file, text)
        if "disk I/O error" in text:
            return UserError(
                f"{file}: {text}\nhelp: look at the machine's log; copy the home to another disk"
            )
        if "readonly" in text or "unable to open" in text:
            return UserError(f"{file}: {text}\nhelp: {_rights(file)}")
        if "no such" in text:
            return UserError(f"{file}: is of another version: {text}\nhelp: {_AWAY}")
    return None


_AWAY = f"move it away, {ELSEWHERE}"


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file}: the database is damaged: {reason}\nhelp: put a copy of it back, or {_AWAY}; "
        "checkpoints are not in it"
    )


def _rights(file: Path) -> str:
    return f"ask its owner for rights on {file} and its folder, {ELSEWHERE}"
