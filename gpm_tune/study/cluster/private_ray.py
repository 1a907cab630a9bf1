"""What keeps the other users of a machine away from a study's Ray: a folder and a token of its own.

Ray 2.60 gives its session folders mode 0777, and the token that it makes in ~/.ray mode 0644. Another user
could put sockets of his own in their place, or submit jobs, which run as the user of the study.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from gpm_tune.errors import UserError

PREFIX = "gpm-ray-"
MAX_BASE_BYTES = 22  # of the folder's parent; a socket's path ends at 107, and up to 85 of them are below it
LEAVING_SECONDS, AGAIN_SECONDS = 5.0, 0.2
UNLOCKED_SECONDS = 60.0  # a folder that has no owner for so long is left over
SETTINGS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def private_session() -> Iterator[str]:
    """A folder for the Ray that this process starts, and a token that its processes find; both end with it.

    Nobody else can enter the folder, or read the token, whatever the umask. Raises UserError where there
    is no place for it.
    """
    folder = _make_folder()
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # while this process lives, others do not sweep it away
            token = folder / "token"
            token.touch(mode=0o600)
            token.chmod(0o600)  # where the umask took more
            token.write_text(secrets.token_hex(32))
            before = {name: os.environ.get(name) for name in SETTINGS}
            _set({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token)})
            try:
                yield str(folder / "r")  # to what it is given Ray gives mode 0777
            finally:
                _set(before)
    finally:
        end = time.monotonic() + LEAVING_SECONDS
        while folder.exists() and time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(AGAIN_SECONDS)  # a process of Ray's that is still ending may make folders anew


def narrow_token() -> None:
    """Let only its owner read the token in ~/.ray, if that is who runs this."""
    with suppress(OSError, RuntimeError):  # without a home, there is none
        file = Path.home() / ".ray" / "auth_token"
        state = file.lstat()
        if stat.S_ISREG(state.st_mode) and state.st_uid == os.geteuid() and state.st_mode & 0o077:
            file.chmod(0o600)


def _set(settings: Mapping[str, str | None]) -> None:
    """Set environment variables, None for none, and let Ray, which keeps what it reads, read them again."""
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _make_folder() -> Path:
    for base in _bases():
        try:
            base.mkdir(parents=True, exist_ok=True)
            if not _is_safe(base):
                continue
            _sweep(base)
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            folder.chmod(0o700)
        except OSError:  # full, or not ours to write
            continue
        return folder
    raise UserError(
        "Ray has no place for its sockets and logs: /tmp cannot be written, or is not safe from others\n"
        f"help: set RAY_TMPDIR to a folder of yours, with a path of at most {MAX_BASE_BYTES} bytes"
    )


def _bases() -> list[Path]:
    """Where Ray would put its folder, as far as paths of sockets are short enough there."""
    wanted = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"]
    return [Path(place) for place in wanted if place and len(os.fsencode(place)) <= MAX_BASE_BYTES]


def _is_safe(base: Path) -> bool:
    """Whether nobody else can rename or delete what this process makes in a folder."""
    state = base.stat()
    is_trusted = state.st_uid in (0, os.geteuid())
    return is_trusted and (not state.st_mode & 0o022 or bool(state.st_mode & stat.S_ISVTX))


def _sweep(base: Path) -> None:
    """Delete what processes of this user have left that were killed."""
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or another process was faster
            state, lock = folder.lstat(), folder / "lock"
            is_own = stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()
            last = (lock if lock.exists() else folder).stat().st_mtime
            if not is_own or time.time() - last < UNLOCKED_SECONDS:
                continue
            with lock.open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
