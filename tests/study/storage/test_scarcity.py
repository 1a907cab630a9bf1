"""Storage that is locked, full, damaged, foreign or another user's: real locks, disks and users."""

from __future__ import annotations

import errno
import gc
import logging
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import optuna
import pytest
import yaml
from examples import MODELS, POINTS, TEACHER, measured, study_data, study_of
from optuna.storages import RDBStorage
from program import Started, call, gpm_tune, write_study

from gpm_tune import Study, patience
from gpm_tune.cli import _judge
from gpm_tune.errors import LEAST_FREE, ScarcityError, UnknownError, UserError, is_full, no_space
from gpm_tune.patience import Patience, scarcity
from gpm_tune.study.accounts.database import TABLES, open_storage
from gpm_tune.study.accounts.records import count_trials, read_studies, read_study
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.study.running.manage import delete
from gpm_tune.study.storage.database import has_tables
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import only_once
from gpm_tune.training.objectives import Measured
from gpm_tune.training.run import Runs
from gpm_tune.training.trainer import Evaluation
from gpm_tune.uris import sqlite_uri

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextmanager
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Held by another connection, as a backup or a database browser does."""
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


@contextmanager
def once_waiting(act: Callable[[], object]) -> Iterator[None]:
    """Do something as soon as it is said that something is waited for."""

    class Heard(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            act()

    handler, logger = Heard(logging.WARNING), logging.getLogger("gpm_tune")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def quick_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("accounts", "storage"):
        monkeypatch.setattr(f"gpm_tune.study.{module}.database.BUSY_SECONDS", 0.1)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB. `fill` fills it."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    return filler


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With a study of one complete trial, and MLflow's store."""
    place = Home(tmp_path / "home")
    place.root.mkdir()
    manager = TrialManager(study_of(), place.optuna_uri)
    assert manager.next() is not None
    manager.report(0, 4, measured())
    manager.complete(0)
    disconnect(manager._optuna._storage)
    return place


def test_a_lock_is_waited_for_with_one_word(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    manager = TrialManager(study_of(), home.optuna_uri)
    with locked(home.root / "optuna.db") as other, once_waiting(lambda: other.execute("ROLLBACK")):
        manager.spending.keep()
    assert caplog.text.count("optuna.db is locked by another process") == 1
    assert "waiting up to 10 minutes" in caplog.text


def test_a_lock_that_stays_is_a_sentence(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0)
    manager = TrialManager(study_of(), home.optuna_uri)
    with locked(home.root / "optuna.db"):
        with pytest.raises(
            ScarcityError, match=r"optuna\.db is locked by another process.*\nhelp: nothing is"
        ):
            manager.spending.keep()
        with pytest.raises(ScarcityError, match="locked"):
            delete(home, "small")
        assert [record.name for record in read_studies(home.optuna_uri)] == ["small"], "reading goes on"
    assert read_study(home.optuna_uri, "small").trials


@contextmanager
def closed_to_readers(file: Path) -> Iterator[None]:
    """Held by another connection that lets nobody read, as without a write-ahead log."""
    gc.collect()  # readers that are no longer used close: a change of the journal waits for them
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        yield


def disconnect(storage: object) -> None:
    """Close the connections of a trial manager's storage."""
    storage._backend.engine.dispose()  # type: ignore[attr-defined]


def test_a_list_that_a_lock_cut_short_is_an_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0)
    names_of = optuna.get_all_study_names
    with ExitStack() as locks:

        def names_before_the_lock(storage: RDBStorage) -> list[str]:
            names = names_of(storage)
            storage.engine.dispose()
            locks.enter_context(closed_to_readers(home.root / "optuna.db"))
            return names

        monkeypatch.setattr(optuna, "get_all_study_names", names_before_the_lock)
        with pytest.raises(ScarcityError, match="locked"):
            read_studies(home.optuna_uri)


def test_the_text_of_a_study_in_a_notebook_waits_for_nothing(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(study_data()))
    study = Study(file, home=home.root)
    assert repr(study) == "Study('small': 1 complete)"
    assert repr(Study(file, {"name": "other"}, home=home.root)) == "Study('other': not run yet)"
    with closed_to_readers(home.root / "optuna.db"):
        assert repr(study) == "Study('small': cannot be read)"
    (home.root / "optuna.db").write_bytes(b"garbage" * 9999)
    assert repr(study) == "Study('small': cannot be read)"


@pytest.mark.parametrize("use", [read_study, count_trials])
def test_a_stage_that_has_not_begun_is_no_study(home: Home, use: Callable[[str, str], object]) -> None:
    with pytest.raises(UnknownError, match=r"no study is named 'small\.confirm'"):
        use(home.optuna_uri, "small.confirm")


def test_a_wait_ends_where_it_is_told_to(home: Home) -> None:
    """As by a Ctrl-C, or a stop."""
    own = Patience()
    manager = TrialManager(study_of(), home.optuna_uri, own)
    with locked(home.root / "optuna.db"):
        stop = threading.Event()
        own.is_over = stop.is_set
        with once_waiting(stop.set), pytest.raises(ScarcityError, match="locked"):
            manager.spending.keep()


def test_a_full_disk_is_waited_for_and_nothing_of_a_run_is_lost(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Runs(str(full_disk / "runs"), full_disk / "cache").named("edm-digits-1")
    own, manager = Patience(), TrialManager(study_of(), f"sqlite:///{full_disk / 'optuna.db'}")

    measured = Measured(curve={1: {"fid": 1.0}}, scalars={})

    def keep(step: int) -> None:
        evaluation = Evaluation(step, measured, b"0" * 100_000)
        own.use(lambda: run.keep_evaluation(evaluation, "judge", "cpu", "user"), Path(run.location))

    filler = fill(full_disk)
    with once_waiting(filler.unlink):
        keep(1)
    assert caplog.text.count("no space is left on the disk of") == 1
    monkeypatch.setattr(patience, "PATIENCE", 0)
    fill(full_disk)
    with pytest.raises(ScarcityError, match="no space is left on the disk of"):
        keep(2)
    with pytest.raises(ScarcityError, match=r"no space is left on the disk of .*optuna\.db"):
        manager._optuna.set_user_attr("large", "0" * 5_000_000)
    assert [found.step for found in run.evaluations("judge")] == [1], "what is not whole is not there"
    filler.unlink()
    keep(2)
    assert [found.step for found in run.evaluations("judge")] == [1, 2]
    for step in (1, 2):
        assert len(Path(run.picture(step, "judge")).read_bytes()) == 100_000


def cut(size: int) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, size)


def altered(*statements: str) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return damage


def another_program(file: Path) -> None:
    file.unlink()
    altered("CREATE TABLE cookies (name)")(file)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


WHOLE = {  # every database of the home
    "half of it": (lambda file: os.truncate(file, file.stat().st_size // 2), "damaged"),
    "its header alone": (cut(100), "damaged"),
    "a part of its header": (cut(50), "damaged"),
    "garbage": (lambda file: file.write_bytes(b"garbage" * 9999), "damaged: file is not a database"),
    "garbage in it": (
        lambda file: file.write_bytes(file.read_bytes()[:100] + b"garbage" * 99999),
        "damaged",
    ),
    "another program's": (another_program, "is a database of another program, with tables cookies"),
    "a folder": (folder_instead, "is a folder, not a database"),
}
OPTUNAS = {
    "another version": (altered("UPDATE alembic_version SET version_num = 'v99'"), "no longer compatible"),
    "a column is gone": (altered("ALTER TABLE trials RENAME state TO stat"), "no such column"),
    "no JSON": (altered("UPDATE study_user_attributes SET value_json = '{'"), "is no JSON"),
}
VALUES = {
    f"{key} {value}": altered(f"UPDATE {table} SET value_json = '{value}' WHERE key = '{key}'")
    for table, key, value in [
        ("study_user_attributes", "identity", '"{"'),
        ("study_user_attributes", "identity", '"[]"'),
        ("study_user_attributes", "identity", "{}"),
        ("trial_user_attributes", "progress", "[1]"),
        ("trial_user_attributes", "progress", '{"best": 3}'),
    ]
}


@pytest.mark.parametrize(("damage", "words"), [*WHOLE.values(), *OPTUNAS.values()], ids=[*WHOLE, *OPTUNAS])
def test_a_database_that_cannot_be_used_is_said(
    home: Home, damage: Callable[[Path], None], words: str
) -> None:
    file = home.root / "optuna.db"
    damage(file)
    for use in (
        lambda: read_study(home.optuna_uri, "small"),
        lambda: TrialManager(study_of(), home.optuna_uri).next(),
    ):
        with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: .*{words}(.|\n)*\nhelp: "):
            use()


@pytest.mark.parametrize(("damage", "words"), WHOLE.values(), ids=[*WHOLE])
def test_so_is_one_of_mlflow(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    home, file = Home(tmp_path), tmp_path / "mlflow.db"
    columns = ", ".join(f"column_{number}" for number in range(500))
    altered(f"CREATE TABLE experiments ({columns})", "CREATE TABLE runs (name)")(file)  # more than a page
    home.check_tracking()
    damage(file)
    with pytest.raises(UserError, match=f"mlflow.db: .*{words}"):
        home.mlflow()


NO_MLFLOW = altered("CREATE TABLE experiments (name)", "CREATE TABLE runs (name)")


@pytest.mark.parametrize(
    ("damage", "uri"),
    [
        (lambda file: file.write_bytes(b"garbage" * 9999), None),
        (NO_MLFLOW, None),
        (lambda _: None, "http://127.0.0.1:9"),
    ],
    ids=["damaged", "another version", "away"],
)
def test_a_study_is_deleted_without_mlflow(
    home: Home, damage: Callable[[Path], object], uri: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home = Home(home.root, uri)
    damage(home.root / "mlflow.db")
    with pytest.raises(UserError, match="help: or leave what MLflow has of the study: --keep-runs"):
        delete(home, "small")
    assert read_study(home.optuna_uri, "small")
    assert delete(home, "small", keep_runs=True) == []
    assert read_studies(home.optuna_uri) == []


def test_an_empty_database_holds_no_study_and_takes_one(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").touch()
    uri = Home(tmp_path).optuna_uri
    assert read_studies(uri) == []
    TrialManager(study_of(), uri)
    assert [record.name for record in read_studies(uri)] == ["small"]


@pytest.mark.parametrize("damage", VALUES.values(), ids=[*VALUES])
def test_a_study_that_is_damaged_is_no_trouble_to_others(
    home: Home, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(home.root / "optuna.db")
    TrialManager(study_of(name="other"), home.optuna_uri)
    with caplog.at_level(logging.WARNING, "gpm_tune"):
        assert [record.name for record in read_studies(home.optuna_uri)] == ["other"]
    assert "study 'small' cannot be read: " in caplog.text
    with pytest.raises(UserError, match=r"study 'small' cannot be read: (.|\n)*gpm-tune delete small"):
        read_study(home.optuna_uri, "small")


def test_a_study_whose_creation_was_cut_short_is_no_trouble_to_others(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    optuna.create_study(study_name="half", storage=open_storage(home.optuna_uri, Patience()))
    with caplog.at_level(logging.WARNING, "gpm_tune"):
        assert [record.name for record in read_studies(home.optuna_uri)] == ["small"]
    assert "study 'half' is not whole" in caplog.text
    with pytest.raises(UserError, match="run it again, or delete it: gpm-tune delete half"):
        read_study(home.optuna_uri, "half")
    assert count_trials(home.optuna_uri, "half") == 0
    delete(home, "half")
    TrialManager(study_of(name="half"), home.optuna_uri)
    assert read_study(home.optuna_uri, "half").trials == []


READ = """
import gc, os, sys
from pathlib import Path
import pytest
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.database import open_storage
from gpm_tune.study.accounts.records import read_studies
from gpm_tune.patience import Patience
from gpm_tune.study.running.manage import is_running
from gpm_tune.study.storage.home import Home

home = Home(Path(sys.argv[1]))
read_studies(home.optuna_uri), is_running(home, "small")  # imports what another user may not read
gc.collect()  # and closes it
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print("ready", flush=True)
for line in sys.stdin:
    if line == "closed\\n":
        with pytest.raises(UserError, match=r"optuna\\.db: cannot be read: Permission denied\\nhelp: ask"):
            read_studies(home.optuna_uri)
    else:
        assert [len(record.trials) for record in read_studies(home.optuna_uri)] == [1]
        assert is_running(home, "small") is (line == "live\\n")
        with pytest.raises(UserError, match=r"optuna\\.db: .*\\nhelp: ask its owner for rights"):
            open_storage(home.optuna_uri, Patience()).create_new_study([], "theirs")
        with pytest.raises(UserError, match="cannot be written"):
            home.check()
    print("done", flush=True)
"""


def python(code: str, *words: object) -> subprocess.Popen[str]:
    """Start an interpreter of its own: a fork of this one would have its locks, and not its threads."""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def heard(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def tell(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{word}\n")
    child.stdin.flush()


@needs_root
def test_another_user_reads_a_home_that_is_not_theirs_to_write() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to others
    try:
        folder.chmod(0o755)
        home = Home(folder)
        manager = TrialManager(study_of(), home.optuna_uri)
        manager.next()
        with only_once("study 'small'", home.study("small")):
            pass
        disconnect(manager._optuna._storage)
        with python(READ, folder) as reader:
            assert heard(reader) == "ready\n"
            tell(reader, "idle")
            assert heard(reader) == "done\n"
            with only_once("study 'small'", home.study("small")):
                writer = TrialManager(study_of(), home.optuna_uri)
                tell(reader, "live")
                assert heard(reader) == "done\n"
            disconnect(writer._optuna._storage)
            (folder / "optuna.db").chmod(0o600)
            tell(reader, "closed")
            assert heard(reader) == "done\n"
    finally:
        shutil.rmtree(folder)


BEGIN = """
import sys
from pathlib import Path
from examples import study_of
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.storage.home import Home
from gpm_tune.study.tracking.sender import Store, import_mlflow

import_mlflow()
for folder in sys.argv[2:]:
    home, name = Home(Path(folder)), sys.argv[1]
    print("ready", flush=True)
    sys.stdin.readline()
    TrialManager(study_of(name=name), home.optuna_uri)
Store(home.tracking_uri, name, None).find("key")  # once: its tables take seconds
"""


def test_two_studies_begin_in_a_fresh_home_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    homes = [tmp_path / str(attempt) for attempt in range(2)]
    children = [python(BEGIN, name, *homes) for name in ("one", "two")]
    for home in homes:
        home.mkdir()
        for child in children:
            assert heard(child) == "ready\n"
        for child in children:
            tell(child, "go")
    assert [child.wait() for child in children] == [0, 0]
    for home in homes:
        assert [record.name for record in read_studies(Home(home).optuna_uri)] == ["one", "two"]


IMPATIENT = "import gpm_tune.patience as p; p.PATIENCE = 6; from gpm_tune.cli import main; main()"


@pytest.mark.slow
def test_a_study_whose_database_stays_locked_stops_in_order(tmp_path: Path) -> None:
    study = write_study(tmp_path, budget={"trials": 2}, experiment={**POINTS, "training": {"steps": 4000}})
    home = tmp_path / "home"
    process = Started("run", study, "--home", home, code=IMPATIENT)
    output = ""
    for line in process.stdout:
        output += line
        if "step 4/" in line:
            break
    with locked(home / "optuna.db"):
        output += process.stdout.read()
        assert process.wait(60) == 1, output
    assert output.count("waiting up to") == 1
    assert re.search(r"error: the study was interrupted: .*optuna\.db is locked by another process", output)
    assert "Traceback" not in output
    assert "bug of gpm-tune" not in output
    trials = read_study(Home(home).optuna_uri, "small").trials
    assert {trial.state for trial in trials} == {"running"}, "the next run goes on with them"
    assert list(home.rglob("checkpoint.json")), "they have checkpointed"


@pytest.mark.slow
def test_a_training_on_a_full_disk_is_a_sentence_and_goes_on(full_disk: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(space.put(POINTS, {"model.discriminator.width": 256})))
    filler = fill(full_disk)
    os.truncate(filler, 4 * 2**20 - 2**18)  # room for what is written before the first checkpoint
    options = ["--home", str(full_disk / "home"), "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    full = call(tmp_path, "train", str(file), *options, code=IMPATIENT)
    assert full.returncode == 1, full.stdout + full.stderr
    assert re.search(r"error: no space is left on the disk of .*runs.*\nhelp: ", full.stderr)
    assert full.stderr.count("waiting up to") == 1
    assert "bug of gpm-tune" not in full.stderr
    filler.unlink()
    again = gpm_tune("train", file, *options)
    assert again.returncode == 0, again.stdout + again.stderr


FAILS = [
    sqlite3.OperationalError("disk I/O error"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
]


@pytest.mark.parametrize("error", FAILS, ids=["SQLite", "torch"])
def test_a_disk_that_fails_is_full_where_it_has_little_room(
    full_disk: Path, tmp_path: Path, error: Exception
) -> None:
    filler = fill(full_disk)
    os.truncate(filler, filler.stat().st_size - 4096)
    assert is_full(error, full_disk)
    assert is_full(error, full_disk / "file")
    assert scarcity(error, full_disk / "file") == f"no space is left on the disk of {full_disk / 'file'}"
    if shutil.disk_usage(tmp_path).free > LEAST_FREE:
        assert not is_full(error, tmp_path)


def test_a_full_disk_is_said_with_advice_once() -> None:
    error = pickle.loads(pickle.dumps(ScarcityError(no_space("place"))))
    assert str(error).splitlines() == [
        "no space is left on the disk of place",
        "help: nothing is lost; once that is fixed, the same command goes on",
    ]
    for full in (OSError(errno.ENOSPC, "No space", "place"), OSError(errno.EDQUOT, "Quota", "place")):
        assert _judge(full) == (1, str(error))


@pytest.mark.slow
def test_the_training_of_a_teacher_on_a_full_disk_is_a_sentence(full_disk: Path, tmp_path: Path) -> None:
    experiment = {**POINTS, "model": {**MODELS["score_gan"], "teacher": {"experiment": TEACHER}}}
    file = tmp_path / "pupil.yaml"
    file.write_text(yaml.safe_dump(experiment))
    home = tmp_path / "home"
    home.mkdir()
    (home / "runs").symlink_to(full_disk)
    filler = fill(full_disk)
    os.truncate(filler, 4 * 2**20 - 2**15)  # room for the experiment
    full = call(tmp_path, "train", str(file), "--home", str(home), code=IMPATIENT)
    assert full.returncode == 1, full.stdout + full.stderr
    assert re.search(r"error: no space is left on the disk of .*runs.*\nhelp: ", full.stderr)
    assert "bug of gpm-tune" not in full.stderr


def test_errors_of_other_kinds_are_raised_at_once() -> None:
    with pytest.raises(OSError, match="Input/output"):
        Patience().use(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output")), Path())


def test_a_look_at_a_database_takes_no_locks_from_this_process(tmp_path: Path) -> None:
    """Else another process deletes the log in use, and this one fails with a disk I/O error."""
    file = tmp_path / "optuna.db"
    storage = open_storage(sqlite_uri(file), Patience())
    optuna.create_study(study_name="mine", storage=storage)
    assert has_tables(file, TABLES)
    other = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM studies'); c.close()"
    )
    subprocess.run([sys.executable, "-c", other, str(file)], check=True)
    assert file.with_name("optuna.db-wal").exists()
    assert optuna.get_all_study_names(storage) == ["mine"]
