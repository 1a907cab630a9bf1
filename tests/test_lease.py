"""One holder at a time: real processes on a disk, an S3 server, and orders in a simulated one."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation.threads import World

from gpm_tune import lease as module
from gpm_tune import locations
from gpm_tune.errors import UserError
from gpm_tune.lease import SETTLE_SECONDS, STALE_SECONDS, Clock, HeldError, Lease, LeaseLostError, holder_of

HOLD = """
import sys, time
from gpm_tune import lease
from gpm_tune.errors import UserError
lease.BEAT_SECONDS = 0.1
held = lease.Lease(sys.argv[1], "trial 3 of study edm")
with held.held():
    print("held", flush=True)
    try:
        while True:
            held.check()
            time.sleep(0.02)
    except lease.LeaseLostError as error:
        print(str(error), flush=True)
"""

COMPETE = """
import os, random, signal, sys
from gpm_tune import lease
lease.LOOK_SECONDS = 0.002
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
def say(word):
    os.write(log, f"{word} {os.getpid()}\\n".encode())
for turn in range(25):
    with lease.Lease(sys.argv[1], "a competitor").held():
        say("enter")
        if random.random() < 0.02:
            say("leave")
            os.kill(os.getpid(), signal.SIGKILL)
        say("leave")
"""


class Leaping(Clock):
    """A clock on which a wait takes no time."""

    def __init__(self) -> None:
        self._leapt = 0.0
        self._start = super().now()

    @property
    def passed(self) -> float:
        """Seconds since it was made."""
        return self.now() - self._start

    def now(self) -> float:
        return super().now() + self._leapt

    def wall(self) -> datetime:
        return super().wall() + timedelta(seconds=self._leapt)

    def sleep(self, seconds: float) -> None:
        self._leapt += seconds


@contextmanager
def a_holder(location: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, location], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        return f"{request.getfixturevalue('bucket')}/lease.json"
    (tmp_path / "run").mkdir()
    return f"{tmp_path}/run/lease.json"


def as_of_another_host(location: str, **changes: object) -> None:
    """Change a lease to what a process on another host would have written."""
    content = json.loads(locations.read(location)) | {"host": "elsewhere", "boot": "another"} | changes
    locations.write(location, json.dumps(content).encode())


def test_a_lease_is_there_while_it_is_held(location: str) -> None:
    lease = Lease(location, "trial 3 of study edm", clock=Leaping())
    assert holder_of(location) is None
    for _ in range(2):
        with lease.held():
            lease.check()
            holder = holder_of(location)
            assert holder is not None
            assert (holder.nonce, holder.holder, holder.process) == (
                lease.nonce,
                "trial 3 of study edm",
                os.getpid(),
            )
            before = holder.beat
            lease.beat()
            assert json.loads(locations.read(location))["beat"] == before + 1
        assert locations.children(location.removesuffix("/lease.json")) == []


def test_who_holds_it_is_said(location: str) -> None:
    with Lease(location, "trial 3 \x1b[31m", clock=Leaping()).held():
        clock, told = Leaping(), list[str]()
        other = Lease(location, "another", clock=clock)
        with pytest.raises(
            HeldError, match=rf"trial 3 \\x1b\[31m \(process {os.getpid()} on .* last sign at "
        ):
            other.acquire(False, bool, told.append)
        assert told == []
        with pytest.raises(UserError, match="\nhelp: "):
            other.acquire(True, lambda: clock.passed > 30, told.append)
        assert [text.startswith("trial 3") for text in told] == [True]
        assert clock.passed < 40


def test_who_waits_holds_it_next(location: str) -> None:
    first, second = Lease(location, "first", clock=Leaping()), Lease(location, "second")
    waits = threading.Event()
    with first.held():
        thread = threading.Thread(target=second.acquire, args=(True, bool, lambda _: waits.set()))
        thread.start()
        assert waits.wait(30)
    thread.join(30)
    second.check()
    second.release()


@pytest.mark.parametrize("wait", [True, False])
def test_a_killed_process_of_this_host_is_replaced_at_once(location: str, wait: bool) -> None:
    clock = Leaping()
    with a_holder(location) as process:
        holder = holder_of(location)
        assert holder is not None
        assert (holder.process, holder.runs()) == (process.pid, True)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert holder_of(location) is None
        with Lease(location, "the next", clock=clock).held(wait=wait):
            assert clock.passed < SETTLE_SECONDS + 20


def test_a_number_that_another_process_has_now_is_not_the_holder(location: str) -> None:
    Lease(location, "the first", clock=Leaping()).acquire(True, bool, print)
    holder = json.loads(locations.read(location))
    assert holder["start"] is not None
    locations.write(location, json.dumps({**holder, "start": holder["start"] - 1}).encode())
    assert holder_of(location) is None
    with Lease(location, "the next", clock=Leaping()).held(wait=False):
        pass


def test_a_suspended_process_is_replaced_and_finds_out(location: str) -> None:
    clock = Leaping()
    with a_holder(location) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with pytest.raises(HeldError):
            Lease(location, "hasty", clock=clock).acquire(False, bool, print)
        with Lease(location, "trial 4", clock=clock).held():
            assert clock.passed >= STALE_SECONDS
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            assert f"went to trial 4 (process {os.getpid()}" in process.stdout.readline()
            assert process.wait(30) == 0
            assert holder_of(location) is not None, "it has not released what is not its own"


def test_a_lost_predecessor_is_replaced_at_once_and_finds_out_without_a_beat(location: str) -> None:
    old, new = Leaping(), Leaping()
    first = Lease(location, "first", nonce="0" * 32, clock=old)
    first.acquire(True, bool, print)
    with Lease(location, "second", predecessors=["0" * 32], clock=new).held(wait=False):
        assert new.passed < SETTLE_SECONDS + 20
        old.sleep(STALE_SECONDS / 2)
        with pytest.raises(LeaseLostError, match="went to second"):
            first.check()
        first.beat()
        assert b"second" in locations.read(location)


@pytest.mark.parametrize("changed", [False, True])
def test_a_host_that_seems_gone_is_watched_without_wait_and_one_that_lives_is_said(
    location: str, changed: bool
) -> None:
    clock = Leaping()
    Lease(location, "far", clock=Leaping()).acquire(True, bool, print)
    as_of_another_host(location)
    assert holder_of(location) is not None
    with pytest.raises(HeldError, match="on elsewhere"):
        Lease(location, "near", clock=clock).acquire(False, bool, print)
    assert clock.passed < 20
    as_of_another_host(location, time="2001-02-03T04:05:06Z")
    assert holder_of(location) is None
    lease = Lease(location, "near", clock=clock)
    if changed:
        with pytest.raises(HeldError, match="on elsewhere"):
            lease.acquire(
                False, bool, lambda _: as_of_another_host(location, beat=7, time="2001-02-03T04:05:16Z")
            )
        assert clock.passed < 20
    else:
        with lease.held(wait=False):
            assert STALE_SECONDS <= clock.passed < STALE_SECONDS + 20


def test_time_in_which_the_observer_was_suspended_does_not_count(tmp_path: Path) -> None:
    clock, location = Leaping(), f"{tmp_path}/lease.json"
    Lease(location, "far").acquire(True, bool, print)
    as_of_another_host(location)
    content, lease = locations.read(location), Lease(location, "near", clock=clock)
    for _ in range(5):
        assert not lease._is_stale(location, content)
        clock.sleep(10 * STALE_SECONDS)


def test_a_process_finds_out_that_another_has_held_it_and_ended(location: str) -> None:
    old = Leaping()
    first = Lease(location, "first", clock=old)
    first.acquire(True, bool, print)
    with Lease(location, "second", predecessors=[first.nonce], clock=Leaping()).held():
        pass
    old.sleep(STALE_SECONDS)
    first.beat()
    with pytest.raises(LeaseLostError, match="went to another one that has ended since"):
        first.check()
    assert not locations.exists(location)


def test_a_storage_that_is_away_loses_no_lease(tmp_path: Path) -> None:
    clock = Leaping()
    (tmp_path / "run").mkdir()
    lease = Lease(f"{tmp_path}/run/lease.json", "patient", clock=clock)
    with lease.held():
        (tmp_path / "run").rename(tmp_path / "away")
        clock.sleep(10 * STALE_SECONDS)
        with pytest.raises(OSError, match="lease"):
            lease.beat()
        lease.check()
        (tmp_path / "away").rename(tmp_path / "run")
        lease.beat()
        Path(lease.location).unlink()
        lease.beat()
        assert holder_of(lease.location) is not None, "what was deleted is there again"
        (tmp_path / "run").rename(tmp_path / "away")


DAMAGED = st.one_of(
    st.binary(max_size=50),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ).map(lambda value: json.dumps(value).encode()),
)
REPLACED = st.tuples(
    st.sampled_from(
        ["nonce", "holder", "host", "process", "start", "boot", "namespace", "beat", "time", "more"]
    ),
    st.one_of(
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.booleans(),
        st.lists(st.none(), max_size=1),
        st.sampled_from(["../../x", "", "0" * 33, "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"]),
    ),
)


@given(content=DAMAGED, replaced=st.none() | REPLACED)
def test_what_is_damaged_is_replaced_once_it_has_not_changed(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, replaced: tuple[str, object] | None
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "lease.json"
    if replaced:
        Lease(str(path), "whole").acquire(True, bool, print)
        content = json.dumps(json.loads(path.read_bytes()) | {"boot": "another"} | dict([replaced])).encode()
    path.write_bytes(content)
    holder_of(str(path))
    clock = Leaping()
    with Lease(str(path), "the next", clock=clock).held():
        assert STALE_SECONDS <= clock.passed < STALE_SECONDS + 20
    assert list(path.parent.iterdir()) == []


def a_dead_holder(location: str, claim: bytes | None) -> None:
    """Leave the lease of a killed process, and what another killed one left that was taking it over."""
    with a_holder(location) as process:
        process.kill()
    if claim is not None:
        Path(f"{location}.{json.loads(Path(location).read_bytes())['nonce']}").write_bytes(claim)


def test_a_process_that_was_killed_while_it_took_over_is_in_no_ones_way(tmp_path: Path) -> None:
    clock, location = Leaping(), f"{tmp_path}/lease.json"
    a_dead_holder(location, claim=b"")
    with Lease(location, "the next", clock=clock).held(wait=False):
        assert clock.passed >= STALE_SECONDS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", ["free", "dead", "dead as its successor is"])
def test_of_many_processes_one_holds_it_at_a_time(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, log = f"{tmp_path}/lease.json", tmp_path / "log"
    log.touch()
    if start != "free":
        a_dead_holder(f"{tmp_path}/claim.json", claim=None)
        claim = (tmp_path / "claim.json").read_bytes()
        (tmp_path / "claim.json").unlink()
        a_dead_holder(location, claim if "successor" in start else None)
    competitors = [subprocess.Popen([sys.executable, "-c", COMPETE, location, str(log)]) for _ in range(6)]
    codes = Counter(process.wait(120) for process in competitors)
    assert set(codes) <= {0, -signal.SIGKILL}
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [word for word, _ in lines] == ["enter", "leave"] * (len(lines) // 2)
    assert all(entered[1] == left[1] for entered, left in zip(lines[::2], lines[1::2], strict=True))
    assert len(lines) >= 50 * codes[0]
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    with Lease(location, "the last").held():
        pass
    assert list(tmp_path.iterdir()) == [log]


def test_two_never_hold_it_in_a_bucket_whose_calls_are_quick_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look and the write after it take SETTLE_SECONDS at most, but for some to acquire it."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 8.0)
    events: Counter[str] = Counter()
    for seed in range(30):
        simulate(World(seed, SETTLE_SECONDS / 2.01), monkeypatch, events)
    assert min(events[name] for name in ("acquired", "lost", "released", "crashed", "slow")) > 30, events
    assert events["beat"] > 1000, events


def simulate(world: World, monkeypatch: pytest.MonkeyPatch, events: Counter[str]) -> None:
    """Let three processes hold a lease for a simulated hour, with pauses, slow calls and crashes."""
    location, end, holding, acquiring = "s3://simulated/lease.json", 3600, dict[int, Lease](), set[int]()

    def write(location: str, content: bytes) -> None:
        is_slow = threading.get_ident() in acquiring and world.random.random() < 0.2
        events["slow"] += is_slow
        world.write(location, content, 40.0 if is_slow else None)

    for name, function in {"read": world.read, "write": write, "delete_file": world.delete_file}.items():
        monkeypatch.setattr(locations, name, function)

    def live() -> None:
        me = threading.get_ident()
        while world.now() < end:
            lease = Lease(
                location, f"process {me}", nonce=f"{world.random.getrandbits(128):032x}", clock=world
            )
            acquiring.add(me)
            try:
                lease.acquire(True, lambda: world.now() > end, lambda _: None)
            except HeldError:
                return
            acquiring.remove(me)
            holding[me] = lease
            events["acquired"] += 1
            while world.random.random() < 0.9:
                world.sleep(world.random.choice([5.0, 10.0, 10.0, 10.0, 45.0, 65.0, 200.0]))
                try:
                    lease.check()
                except LeaseLostError:
                    how = "lost"
                    break
                lease.beat()
                events["beat"] += 1
            else:
                how = world.random.choice(["crashed", "released"])
            del holding[me]
            events[how] += 1
            if how == "released":
                lease.release()
            world.sleep(world.random.uniform(0, 20))

    def look() -> None:
        assert len(holding) < 2 or sum(map(passes, holding.values())) < 2, (
            f"seed {world.seed}: two hold it at {world.now()}"
        )

    world.run([live] * 3, look)


def passes(lease: Lease) -> bool:
    """Whether a holder would go on writing."""
    try:
        copy.copy(lease).check()  # the holder itself learns nothing from it
    except LeaseLostError:
        return False
    return True


def test_a_slow_observer_of_a_stale_lease_displaces_no_new_holder(tmp_path: Path) -> None:
    location = f"{tmp_path}/lease.json"
    a_dead_holder(location, claim=None)
    stale = Path(location).read_bytes()
    with Lease(location, "quick").held():
        slow = Lease(location, "slow")
        assert not slow._take(stale)
        holder = holder_of(location)
        assert holder is not None
        assert holder.holder == "quick"
    assert list(tmp_path.iterdir()) == []
