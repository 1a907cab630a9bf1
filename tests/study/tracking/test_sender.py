"""What is sent to MLflow's store, and which stores can take it."""

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gpm_tune.errors import UserError
from gpm_tune.study.tracking.sender import Store, check_store
from gpm_tune.uris import URI, sqlite_uri


def test_nothing_that_others_look_at_is_left_to_be_imported_by_the_thread(tmp_path: Path) -> None:
    """Matplotlib asks a half made IPython for its version, and a training would end by it."""
    pytest.importorskip("IPython")
    script = (
        "import sys; from gpm_tune.study.tracking.publisher import Publisher; from gpm_tune.uris import URI\n"
        "with Publisher(URI('sqlite:///mlflow.db'), 'small', lambda key: None):\n"
        "    print(sys.modules['IPython'].version_info)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("store", "said", "advice"),
    [
        ("unknown://here", "unsupported URI", "sqlite:///FILE"),
        ("./mlruns", "maintenance mode", "sqlite:///FILE"),
        ("http://[half", "Invalid IPv6 URL", "http://SERVER:PORT"),
        ("mssql://sam:s3cret@127.0.0.1/x", "No module named 'pyodbc'", "pyodbc"),
        ("/401", "401", "MLFLOW_TRACKING_PASSWORD"),
        ("/403", "403", "MLFLOW_TRACKING_TOKEN"),
        ("/403/host", "403", "--allowed-hosts"),
        ("/404", "404", "http://SERVER:PORT"),
    ],
)
def test_a_store_that_can_never_be_used_is_refused(
    store: str, said: str, advice: str, answering: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_store(URI(f"{answering}{store}" if store.startswith("/") else store))
    reason, help_line = str(refused.value).split("\nhelp: ")
    assert said in reason
    assert advice in help_line
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("store", ["/500", "/503", "http://127.0.0.1:1"])
def test_a_store_that_is_away_is_waited_for(store: str, answering: str) -> None:
    check_store(URI(f"{answering}{store}" if store.startswith("/") else store))


def test_a_new_database_is_never_there_with_half_of_its_tables(tmp_path: Path) -> None:
    """A process may be killed in between, and MLflow goes on with none that it has half made."""
    database, first = tmp_path / "mlflow.db", []
    database.with_name("mlflow.db.part").write_bytes(b"of a process that was killed")

    def look() -> None:
        while not database.exists():
            time.sleep(0.001)
        first.append(state())

    def state() -> list[tuple[str]]:
        with sqlite3.connect(database) as connection:
            return connection.execute("SELECT version_num FROM alembic_version").fetchall()

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    assert Store(URI(sqlite_uri(database)), "small", None).find("one") is None
    watch.join()
    assert first == [state()]
