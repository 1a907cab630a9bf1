"""SQLite files as the URLs that Optuna and MLflow take, in which `?`, `#` and `%` mean something else."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url

DRIVER = "sqlite+pysqlite"


def url_of(file: Path) -> str:
    """The URL of a database file, whatever characters its path has."""
    url = URL.create("sqlite", database=str(file))
    plain = url.render_as_string(hide_password=False)
    # Where no driver is named, MLflow makes the folder that it reads there, %3F and all.
    is_as_read = plain == f"sqlite:///{file}"
    return plain if is_as_read else url.set(drivername=DRIVER).render_as_string(hide_password=False)


def file_of(url: str) -> Path | None:
    """The database file of a URL; None for a database that is none, such as a server's."""
    if not url.startswith(("sqlite:", f"{DRIVER}:")):
        return None
    database = make_url(url).database
    return Path(database) if database else None
