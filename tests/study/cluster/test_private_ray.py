"""The folder and the token of the Ray that a study starts; test_exposure.py attacks them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpm_tune.study.cluster.private_ray import narrow_token, private_session

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a second user")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder in which Ray is to put its own."""
    place = Path(f"/tmp/b{os.getpid()}")
    place.mkdir(mode=0o700)
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    yield place
    for left in place.iterdir():
        (left / "lock").unlink(missing_ok=True)
        left.unlink() if left.is_symlink() else left.rmdir()
    place.rmdir()


@pytest.mark.parametrize("umask", [0, 0o77, 0o777])
def test_folder_and_token_are_private_whatever_the_umask(base: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with private_session() as session:
            folder = Path(session).parent
            assert folder.parent == base
            token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            assert (folder.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)
    finally:
        os.umask(before)


def test_each_session_has_a_token_of_its_own_and_the_users_settings_come_back(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._raylet import AuthenticationTokenLoader

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-users-cluster")
    tokens = set()
    for _ in range(2):
        with private_session():
            tokens.add(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text())
            assert os.environ["RAY_AUTH_MODE"] == "token"
            assert AuthenticationTokenLoader.instance().has_token()
    assert len(tokens) == 2
    assert os.environ["RAY_AUTH_TOKEN"] == "of-the-users-cluster"
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert list(base.iterdir()) == []


def test_only_what_nobody_holds_any_more_is_swept_away(base: Path, tmp_path: Path) -> None:
    made = {name: base / f"gpm-ray-{name}" for name in ("left", "held", "young")}
    for name, folder in made.items():
        folder.mkdir()
        (folder / "lock").touch()
        if name != "young":
            os.utime(folder / "lock", (0, 0))
    (base / "gpm-ray-link").symlink_to(tmp_path)
    (tmp_path / "lock").touch()
    os.utime(tmp_path / "lock", (0, 0))
    with (made["held"] / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with private_session() as session:
            left = {folder.name for folder in base.iterdir()} - {Path(session).parent.name}
    assert left == {"gpm-ray-held", "gpm-ray-young", "gpm-ray-link"}
    assert (tmp_path / "lock").exists()


@needs_root
def test_another_users_folder_is_let_alone(base: Path) -> None:
    other = base / "gpm-ray-other"
    other.mkdir()
    (other / "lock").touch()
    os.utime(other / "lock", (0, 0))
    os.chown(other, 65534, 65534)
    with private_session():
        assert other.exists()


def test_no_session_lies_where_others_can_rename_it(base: Path) -> None:
    base.chmod(0o777)
    with private_session() as session:
        assert base not in Path(session).parents
    base.chmod(0o1777)
    with private_session() as session:
        assert base in Path(session).parents


@pytest.mark.parametrize(
    ("uid", "narrowed"), [(0, 0o600), pytest.param(65534, 0o644, marks=needs_root)], ids=["own", "foreign"]
)
def test_the_token_of_a_user_is_narrowed_if_it_is_his(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, narrowed: int
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    narrow_token()  # there is none
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.touch(mode=0o644)
    file.chmod(0o644)
    if uid:
        os.chown(file, uid, uid)
    narrow_token()
    assert file.stat().st_mode & 0o777 == narrowed
