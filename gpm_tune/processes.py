"""The identity of a process, by which it can be looked up later by another one of the same host."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Process(BaseModel):
    """A process; start, boot and namespace are None where the system has no /proc."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    host: str
    process: int = Field(gt=0, lt=2**31)
    start: int | None  # in clock ticks since the boot
    boot: str | None
    namespace: str | None  # in which the process has its number

    def runs(self) -> bool | None:
        """Tell whether it still runs; None where it cannot be looked up, as on another host."""
        if None in (self.start, self.boot, self.namespace) or (self.boot, self.namespace) != _kernel():
            return None
        try:
            os.kill(self.process, 0)  # nothing is sent
        except ProcessLookupError:
            return False
        except PermissionError:  # it is another user's
            pass
        try:
            state, start = _state(self.process)
        except OSError:  # hidden from this user, or it has just ended
            return True
        return state not in "ZX" and start == self.start


def this_process() -> Process:
    """The process that asks."""
    boot, namespace = _kernel()
    process = os.getpid()
    start = None if boot is None else _state(process)[1]
    return Process(host=socket.gethostname(), process=process, start=start, boot=boot, namespace=namespace)


def _kernel() -> tuple[str | None, str | None]:
    """The boot of this machine, and the namespace of its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None, None


def _state(process: int) -> tuple[str, int]:
    """The letter of a process's state, and its start. Raises OSError where they cannot be read."""
    fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])
