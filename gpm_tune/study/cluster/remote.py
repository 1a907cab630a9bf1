"""A cluster of Ray's launcher, used from another machine: all that is needed is SSH to its head.

The head's job server and MLflow listen on its 127.0.0.1, and are reached through tunnels.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from shlex import join, quote
from typing import Any

from gpm_tune import locations
from gpm_tune.documents import Document, as_yaml
from gpm_tune.errors import UserError, first_line
from gpm_tune.locations import is_bucket
from gpm_tune.study.cluster.fetching import Get, from_storage
from gpm_tune.study.cluster.plugin_copies import copy_plugins
from gpm_tune.study.cluster.private_ray import narrow_token
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.study.storage.inputs import (
    CURRENT,
    FINGERPRINT,
    PACKED,
    has_data_to_share,
    read_current,
    to_share,
)
from gpm_tune.training import Experiment

JOB_SERVER, MLFLOW = 8265, 5000  # ports on the head's 127.0.0.1
TUNNEL_SECONDS = 60.0  # for SSH to connect
POLL_SECONDS = 2.0  # before the log of a job that goes on is asked for again
PAUSE = 5.0  # seconds before a lost connection is tried again
TUNNEL = (
    "import sys; from ray.autoscaler.sdk import run_on_cluster; "
    "run_on_cluster(sys.argv[1], port_forward=(int(sys.argv[2]), int(sys.argv[3])))"
)


class Cluster:
    """What a cluster file describes, as it was brought up by `ray up`."""

    def __init__(self, file: Path) -> None:
        """Raises UserError where there is no such file, or Ray's launcher is not installed."""
        if not file.is_file():
            raise UserError(
                f"--cluster {file}: there is no such file; expected the one that `ray up` was given"
            )
        if "provider" not in Document.load(file).data:
            raise UserError(f"{file}: no cluster's file: it has no `provider`; is it the one of `ray up`?")
        if (Path.home() / ".ray" / "auth_token").is_file():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # as on the cluster; read when ray is imported
            narrow_token()
        self._file = file

    @property
    def _launcher(self) -> Any:
        """Ray's cluster launcher."""
        try:
            from ray.autoscaler import sdk
            from ray.job_submission import JobSubmissionClient as _  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--cluster: {error}; install it with: pip install '.[cluster]', in a checkout"
            ) from None
        return sdk

    def run(self, words: list[str]) -> bool:
        """Run a command on the head, with its output here. Returns whether it succeeded."""
        from click import ClickException

        with _reported(self._file), suppress(ClickException):  # its output has said why
            self._launcher.run_on_cluster(str(self._file), cmd=join(words))
            return True
        return False

    def submit(self, study: StudyConfig, options: Sequence[str] = ()) -> str:
        """Submit a study as a Ray job, unless one is running that does the same; the job's id.

        The plug-ins that are installed here, and the data that the storage lacks, go along. options: of
        `gpm-tune run` there.
        """
        with self.tunnel(JOB_SERVER) as port, tempfile.TemporaryDirectory() as folder:
            client = _jobs(port)
            for job in client.list_jobs():
                if (job.metadata or {}).get("study") == study.name and not job.status.is_terminal():
                    return str(job.submission_id)
            self.share_data(study.experiment)
            copy_plugins(Path(folder))
            text = as_yaml(study.model_dump(mode="json"))
            (Path(folder) / "study.yaml").write_text(text, encoding="utf-8")
            submitted: str = client.submit_job(
                entrypoint=join(["gpm-tune", "run", "study.yaml", "--address", "auto", *options]),
                submission_id=f"{study.name}-{time.time_ns() // 10**6}",
                metadata={"study": study.name},
                runtime_env={"working_dir": folder},
            )
            return submitted

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Show a job's log until it ends, through whatever happens to the connection; its exit code.

        Raises UserError where the cluster does not know the job any more.
        """
        from aiohttp import ClientError

        # It would tell of every connection that ends.
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        shown, is_lost = 0, False  # shown: characters

        async def show_new(client: Any) -> None:
            nonlocal shown
            read = 0
            async for text in client.tail_job_logs(job):  # from the beginning at every connection
                new = text[max(0, shown - read) :]
                read += len(text)
                if new:
                    shown = read
                    show(new)

        while True:
            try:
                with self.tunnel(JOB_SERVER) as port:
                    client = _jobs(port)
                    while True:
                        client.get_job_info(job)
                        is_lost = False
                        asyncio.run(show_new(client))
                        info = client.get_job_info(job)
                        if info.status.is_terminal():
                            if info.driver_exit_code is None:
                                print(f"job {job}: {info.status}: {info.message}", file=sys.stderr)
                            return 1 if info.driver_exit_code is None else int(info.driver_exit_code)
                        time.sleep(POLL_SECONDS)
            except (OSError, RuntimeError, UserError, ClientError) as error:
                reason = first_line(error)
                if "does not exist" in reason:
                    raise UserError(f"{reason}; was the head of {self._file} started again?") from None
                if not is_lost:
                    is_lost = True
                    print(f"the connection is lost, not the job; trying again ({reason})", file=sys.stderr)
                time.sleep(PAUSE)

    @contextmanager
    def tunnel(self, port: int, here: int = 0) -> Iterator[int]:
        """A port of this machine's 127.0.0.1 that leads to one of the head's; here: which, 0 for any.

        Raises UserError where the head cannot be reached.
        """
        assert self._launcher, "it is there"
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", here))
            except OSError:
                raise UserError(f"port {here} of 127.0.0.1 is in use; choose another with --port") from None
            local: int = probe.getsockname()[1]
        command = [sys.executable, "-c", TUNNEL, str(self._file), str(local), str(port)]
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
            try:
                if not _is_open(local, process):
                    said.seek(0)
                    lines = [line.strip() for line in said if line.strip()]
                    raise UserError(
                        f"--cluster {self._file}: the head cannot be reached; is the cluster up (`ray up "
                        f"{self._file}`)? {lines[-1] if lines else ''}"
                    )
                yield local
            finally:
                with suppress(ProcessLookupError):  # it may have ended by itself
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()

    def get(self) -> Get:
        """How studies are brought here: from its bucket directly, else from its folder through SSH."""
        storage = self._storage()
        if storage is None:
            raise UserError(
                f"--cluster {self._file}: GPM_TUNE_STORAGE is not set on its head; without a storage studies "
                "stay there"
            )
        return from_storage(storage) if is_bucket(storage) else self._through_ssh(storage)

    def _storage(self) -> str | None:
        """The storage of the cluster, as its head has it; None where it has none."""
        return self._answer("echo gpm-tune=$GPM_TUNE_STORAGE=").rstrip("/") or None

    def _answer(self, command: str) -> str:
        """What a command on the head prints between `gpm-tune=` and `=`."""
        with _reported(self._file):
            said = self._launcher.run_on_cluster(str(self._file), cmd=command, with_output=True)
        found = re.search(r"gpm-tune=(\S*)=", said.decode() if isinstance(said, bytes) else str(said))
        return found[1] if found else ""

    def share_data(self, experiment: Experiment) -> None:
        """Put the data into the cluster's storage, where this machine has them, and that has not.

        Raises UserError where it cannot be written.
        """
        storage = self._storage() if has_data_to_share(experiment) else None
        if storage is None:  # nodes have the data, or say that they lack them
            return
        folder = f"{storage}/{PACKED}"
        read, send = (
            (read_current, locations.send) if is_bucket(storage) else (self._read_current, self._send)
        )
        try:
            for file, place in to_share(experiment, lambda name: read(f"{folder}/{name}")):
                if file.name != CURRENT:
                    size = file.stat().st_size / 1e6
                    print(f"copying {file} to {folder}, once: {size:,.1f} MB", file=sys.stderr, flush=True)
                send(file, f"{folder}/{place}")
        except OSError as error:
            raise UserError(
                f"the study's data cannot be copied to {storage}: {error}\n"
                "help: give this machine the right to read and write there, below data/"
            ) from None

    def _read_current(self, stored: str) -> str | None:
        found = self._answer(f"echo gpm-tune=$(cat {quote(f'{stored}/{CURRENT}')} 2> /dev/null)=")
        return found if FINGERPRINT.fullmatch(found) else None

    def _send(self, file: Path, location: str) -> None:
        with _reported(self._file):
            command = join(["mkdir", "-p", str(Path(location).parent)])
            self._launcher.run_on_cluster(str(self._file), cmd=command)
        self._rsync(str(file), location, down=False)

    def _through_ssh(self, storage: str) -> Get:
        def get(path: str, to: Path) -> None:
            source = f"{storage}/{path}"
            end = "" if Path(path).suffix else "/"  # a folder's
            try:
                self._rsync(f"{source}{end}", f"{to}{end}", down=True)
            except UserError:
                if self._answer(f"test -e {quote(source)} || echo gpm-tune=none=") != "none":
                    raise
            if not to.exists():
                raise FileNotFoundError(f"{source} is not on the cluster")

        return get

    def put(self, file: Path) -> str:
        """Copy a file to the head; where it is there."""
        target = f"/tmp/{file.name}"
        self._rsync(str(file), target, down=False)
        return target

    def _rsync(self, source: str, target: str, *, down: bool) -> None:
        with _reported(self._file):
            self._launcher.rsync(str(self._file), source=source, target=target, down=down)


def _jobs(port: int) -> Any:
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(f"http://127.0.0.1:{port}")


def _is_open(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether a port is open before its process ends, or the time is up."""
    end = time.monotonic() + TUNNEL_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    return False


@contextmanager
def _reported(file: Path) -> Iterator[None]:
    """What Ray's launcher says goes to the standard error; what it raises becomes a UserError."""
    from click import ClickException

    with redirect_stdout(sys.stderr):
        try:
            yield
        except ClickException as error:
            raise UserError(f"--cluster {file}: {error.message}") from None
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"--cluster {file}: {error}; is the cluster up (`ray up {file}`)?") from None
