"""A lease on a folder, of a file system or of a bucket: one process at a time works there, on any machine.

The folder is there before: one that a lease makes could be in the place of a disk that is away.

The lease is a small file, which its holder changes every BEAT_SECONDS: a beat. Another process takes it over
once it has itself seen no beat for STALE_SECONDS, so the clocks of two machines are never compared; or at
once, where the holder ran on this host and does not any more. A holder that was suspended finds out by
`Lease.check`.

On a file system a lease is created exclusively. To take over a stale one, a process first creates
`lease.json.NONCE` exclusively, by the nonce of the stale one: so only one does, and moves that file over
`lease.json`. A holder writes its beats into its own file, never over one that has come in its place.

In a bucket, where not every provider creates exclusively, this is Fischer's algorithm: look that the lease is
free, write, wait SETTLE_SECONDS, and hold it if what was written is still there. It excludes others as long
as no process takes longer than SETTLE_SECONDS from its look to the end of its write. A process that notices
that it took longer to acquire it waits until a holder whom it overwrote has found out; only a beat that takes
longer, of a holder that is thought to be gone, may leave two holders, until the next beat of the other. This
suffices here: two writers of one training run write the same contents.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

from pydantic import AwareDatetime, Field, NonNegativeInt, ValidationError

from gpm_tune import locations
from gpm_tune.errors import UserError, escaped
from gpm_tune.processes import Process, this_process

BEAT_SECONDS = 10.0  # between beats
STALE_SECONDS = 60.0  # without a beat, after which a lease is taken over
SETTLE_SECONDS = 2.0  # from a look at a bucket to the end of the write that follows, at most
LOOK_SECONDS = 1.0  # between looks of a process that waits

_log = logging.getLogger("gpm_tune")


class HeldError(UserError):
    """Another process holds the lease."""


class LeaseLostError(UserError):
    """Another process has taken the lease over: this one must not write any more."""


class Clock:
    """The time of this machine."""

    def now(self) -> float:
        """Seconds from any start. They go on while the machine is suspended, where the system counts so."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def wall(self) -> datetime:
        """The time of day, which may jump."""
        return datetime.now(timezone.utc)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


CLOCK = Clock()


class Holder(Process):
    """Content of a lease: the process that holds it, and its latest beat."""

    nonce: str = Field(pattern="^[0-9a-f]{32}$")
    holder: str  # in words
    beat: NonNegativeInt
    time: AwareDatetime  # of the beat

    def __str__(self) -> str:
        seen = self.time.isoformat(" ", "seconds")
        return escaped(f"{self.holder} (process {self.process} on {self.host}, last sign at {seen})")

    def is_silent(self, clock: Clock) -> bool:
        """Tell whether it is on another host, and its latest beat seems to be long ago."""
        return self.runs() is None and abs((clock.wall() - self.time).total_seconds()) > STALE_SECONDS


def holder_of(location: str, clock: Clock = CLOCK) -> Holder | None:
    """Give the present holder of a lease; None where there is none, or it has ended or seems to have.

    Raises OSError where the storage is away.
    """
    holder = _parsed(_read(location))
    return None if holder is None or holder.runs() is False or holder.is_silent(clock) else holder


class Lease:
    """A lease, by the location of its file, that this process may hold.

    holder: in words, for others. nonce: 32 hexadecimal digits that no other lease has. predecessors: nonces
    of holders that are known to be lost, whose lease is taken over at once.
    """

    def __init__(
        self,
        location: str,
        holder: str,
        *,
        nonce: str | None = None,
        predecessors: Collection[str] = (),
        clock: Clock = CLOCK,
    ) -> None:
        self.location = location
        self.nonce = nonce or uuid4().hex
        self._holder = holder
        self._gone = {self.nonce, *predecessors}
        self._clock = clock
        self._watched: dict[str, tuple[bytes, float, float]] = {}  # content, seconds unchanged, latest look
        self._beats = 0
        self._last_beat = 0.0
        self._lost_to: str | None = None

    @contextmanager
    def held(
        self,
        *,
        wait: bool = True,
        is_over: Callable[[], bool] = bool,
        on_wait: Callable[[str], None] = lambda _: None,
        is_used: Callable[[], bool] = lambda: True,
    ) -> Iterator[None]:
        """Acquire the lease, keep it by beats within the block, and release it.

        wait: for a holder that runs; without it, only to see whether one on another host does that seems to
        be gone. is_over: ends the wait. on_wait: is told once for whom it waits. is_used: whether it is
        still needed; without beats others may take it over. Raises HeldError where another process holds it,
        OSError where the storage is away.
        """
        ended = threading.Event()
        beats = threading.Thread(target=self._keep_beating, args=(ended, is_used), name="lease", daemon=True)
        try:
            self.acquire(wait, is_over, on_wait)
            beats.start()
            yield
        finally:
            ended.set()
            if beats.ident is not None:
                beats.join(BEAT_SECONDS)
            if not beats.is_alive():  # else a beat may still be written: the lease goes stale by itself
                self.release()

    def acquire(self, wait: bool, is_over: Callable[[], bool], on_wait: Callable[[str], None]) -> None:
        """Take the lease, as `held` does."""
        first: bytes | None = None
        is_told = False
        while True:
            seen = _read(self.location)
            first, holder = first or seen, _parsed(seen)
            if seen is None or self._is_stale(self.location, seen):
                if self._take(seen):
                    return
            elif holder and not wait and (seen != first or not holder.is_silent(self._clock)):
                raise self._held_by(holder)
            if is_over():
                raise self._held_by(holder)
            if seen is not None and not is_told:
                on_wait(str(holder or self.location))
                is_told = True
            self._clock.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """Raise LeaseLostError where another process has taken the lease over. To be called before writes."""
        if self._lost_to is None and self._clock.now() - self._last_beat > STALE_SECONDS / 2:
            with suppress(OSError):  # the storage is away
                self._is_lost(_read(self.location))
        if self._lost_to is not None:
            raise LeaseLostError(
                f"{self.location}: this process was thought to be gone; the lease went to {self._lost_to}\n"
                "help: nothing is lost; let that process go on, or end it and give the same command again"
            )

    def beat(self) -> None:
        """Give a sign, unless the lease is lost. Raises OSError where the storage is away."""
        before = self._clock.now()
        if locations.is_bucket(self.location):
            if self._is_lost(_read(self.location)) or self._clock.now() - before > SETTLE_SECONDS:
                return
            locations.write(self.location, self._content())
            if before - self._last_beat > STALE_SECONDS / 2:  # another may just write, too
                self._clock.sleep(SETTLE_SECONDS)
                if self._is_lost(_read(self.location)):
                    return
            self._last_beat = before
            return
        path = Path(self.location)
        try:
            with path.open("r+b", buffering=0) as file:
                if self._is_lost(file.read()):
                    return
                file.seek(0)
                file.write(self._content())
                file.truncate()
        except FileNotFoundError:  # someone has deleted it, or the storage is away
            if self._is_lost(None):
                return
            _create(path, self._content())
        # A process that takes it over has seen the beat, or is seen: by its claim first, then in the place.
        if not _claim(path, self.nonce).exists() and not self._is_lost(_read(self.location)):
            self._last_beat = before

    def release(self) -> None:
        """Delete the lease if it is still this one. Where the storage is away it goes stale by itself."""
        try:
            if self._is_own():
                if locations.is_bucket(self.location):
                    locations.delete_file(self.location)
                else:
                    Path(self.location).unlink()
        except OSError as error:
            _log.debug("lease %s cannot be released: %s", self.location, error)

    def _keep_beating(self, ended: threading.Event, is_used: Callable[[], bool]) -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                if is_used():
                    self.beat()
            except Exception as error:  # whatever the storage has, the next beat may succeed
                _log.debug("lease %s has missed a beat: %s", self.location, error)

    def _take(self, seen: bytes | None) -> bool:
        """Try to replace what was seen to be free or stale; tell whether the lease is held now."""
        self._lost_to, self._last_beat = None, self._clock.now()
        if locations.is_bucket(self.location):
            self._take_in_bucket(seen)
        else:
            self._take_in_folder(Path(self.location), seen)
        return self._is_own()

    def _take_in_folder(self, path: Path, seen: bytes | None) -> None:
        holder = _parsed(seen)
        digest = hashlib.sha256(seen or b"").hexdigest()[:32]  # of what has no nonce
        claim = path if seen is None else _claim(path, holder.nonce if holder else digest)
        try:
            _create(claim, self._content())
        except FileExistsError:
            claimed = _read(str(claim))
            if seen is None or claimed is None or not self._is_stale(str(claim), claimed):
                return  # the process that has created it goes on
        if seen is not None:
            with suppress(FileNotFoundError):
                if _read(str(path)) == seen:
                    claim.replace(path)
                else:
                    claim.unlink()

    def _take_in_bucket(self, seen: bytes | None) -> None:
        before = self._clock.now()
        if _read(self.location) == seen:
            locations.write(self.location, self._content())
            is_quick = self._clock.now() - before <= SETTLE_SECONDS
            # A holder that was overwritten by one that is slow finds out by then, by `beat` or `check`.
            self._clock.sleep(SETTLE_SECONDS if is_quick else STALE_SECONDS / 2)

    def _is_stale(self, place: str, content: bytes) -> bool:
        """Note what is seen of a lease; tell whether its holder has gone."""
        holder = _parsed(content)
        if holder and (holder.nonce in self._gone or holder.runs() is False):
            return True
        now = self._clock.now()
        before, unchanged, looked = self._watched.get(place, (None, 0.0, now))
        # In a longer step this process was suspended, and the holder may have been so, too.
        unchanged = unchanged + min(now - looked, BEAT_SECONDS) if content == before else 0.0
        self._watched[place] = (content, unchanged, now)
        return unchanged >= STALE_SECONDS

    def _is_own(self) -> bool:
        holder = _parsed(_read(self.location))
        return holder is not None and holder.nonce == self.nonce

    def _is_lost(self, content: bytes | None) -> bool:
        """Note whether another has taken the lease over; content: what is in its place."""
        holder = _parsed(content)
        is_there = locations.is_bucket(self.location) or Path(self.location).parent.is_dir()
        if holder and holder.nonce != self.nonce:
            self._lost_to = str(holder)
        elif content is None and is_there and self._clock.now() - self._last_beat > STALE_SECONDS:
            self._lost_to = "another one that has ended since"
        return self._lost_to is not None

    def _content(self) -> bytes:
        """The file's content from the next beat on."""
        self._beats += 1
        wall = self._clock.wall().replace(microsecond=0)
        process = this_process().model_dump()
        holder = Holder(**process, nonce=self.nonce, holder=self._holder, beat=self._beats, time=wall)
        return holder.model_dump_json(indent=1).encode() + b"\n"

    def _held_by(self, holder: Holder | None) -> HeldError:
        return HeldError(
            f"{self.location}: held by {holder or 'an unknown process'}; one process at a time works there\n"
            f"help: wait until it ends, or end it; a process that is lost is replaced after "
            f"{STALE_SECONDS:.0f} seconds"
        )


def _claim(path: Path, nonce: str) -> Path:
    """The file that a process must create to take over the lease with that nonce."""
    return path.with_name(f"{path.name}.{nonce}")


def _parsed(content: bytes | None) -> Holder | None:
    """The holder that a file names; None where there is no file, or one that is damaged."""
    try:
        return None if content is None else Holder.model_validate_json(content)
    except ValidationError:
        return None


def _read(location: str) -> bytes | None:
    """The content of a file; None where there is none. Raises OSError where it cannot be read."""
    with suppress(FileNotFoundError):
        return locations.read(location) if locations.is_bucket(location) else Path(location).read_bytes()
    return None


def _create(path: Path, content: bytes) -> None:
    """Create a file, which is damaged while it is half written. Raises FileExistsError where there is one."""
    with path.open("xb", buffering=0) as file:
        try:
            file.write(content)
        except OSError:  # the disk is full
            path.unlink()
            raise
