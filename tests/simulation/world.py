"""Simulated machines: their processes, clocks and disasters. One seeded random generator decides everything.

A process is a set of fibers: greenlets, of which one at a time goes on, until it waits for time to pass. What
reads or writes outside of its process takes a `step`, before which the process may crash or freeze, and
others go on. What runs between two steps takes no time, and nobody sees it half done.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any

import greenlet

MOST_EVENTS = 300_000  # of a simulation that ends


class Crash(BaseException):
    """The process has ended, at once: nothing of it that this passes through has an effect outside."""


class EndlessError(AssertionError):
    """Processes that keep each other busy, or wait for each other."""


class Process:
    """A process of a simulated machine."""

    def __init__(self, name: str, host: str, number: int) -> None:
        self.name = name
        self.host = host
        self.number = number
        self.is_dead = False
        self.is_idle = False  # it waits for something to do, and writes nothing
        self.frozen_until = 0.0
        self.children: list[Process] = []  # that end with it, a little later
        self.fibers: list[Fiber] = []


class Fiber(greenlet.greenlet):
    """One thread of a process."""

    process: Process
    turn = 0  # counts what it waits for: an earlier wait is over


class World:
    """The machines. Between disasters, of which there are so many at most, all goes as it should."""

    def __init__(self, seed: int, disasters: int) -> None:
        self.random = random.Random(seed)
        self.disasters = disasters
        self._notes: list[tuple[float, greenlet.greenlet, str]] = []
        self.violations: list[str] = []
        self.has_frozen = False  # some process, at some time
        self.time = 0.0
        self.events = 0
        self.kill_chance = self.random.choice([0.0, 0.002, 0.01, 0.03])
        self.freeze_chance = self.random.choice([0.0, 0.0, 0.001])
        self._away: dict[str, float] = {}  # until when a service does not answer
        self._away_chance = self.random.choice([0.0, 0.0, 0.002])
        self._lost_chance = self.random.choice([0.0, 0.01])
        self._skew = 0.0
        self._waiting: list[tuple[float, float, int, Fiber, int]] = []
        self._hub = greenlet.getcurrent()
        self.processes: list[Process] = []  # by their numbers

    # Processes

    def start(
        self, name: str, host: str, run: Callable[[], object], parent: Process | None = None
    ) -> Process:
        """Start a process whose main thread calls a function."""
        process = Process(name, host, len(self.processes))
        self.processes.append(process)
        if parent:
            parent.children.append(process)
        self.note(f"starts {name} on {host}, process {process.number}")
        self.spawn(process, run, ends=True)
        return process

    def spawn(self, process: Process, run: Callable[[], object], *, ends: bool = False) -> None:
        """Let a thread of a process begin. ends: whether the process ends with it."""

        def live() -> None:
            try:
                run()
            except Crash:
                pass
            finally:
                process.fibers.remove(fiber)
                if ends:
                    self.kill(process, "has ended")

        fiber = Fiber(live, self._hub)
        fiber.process = process
        process.fibers.append(fiber)
        self.wake(fiber, self.time)

    def kill(self, process: Process, why: str = "is killed") -> None:
        """End a process, and after a while its children, which nobody looks after any more."""
        if process.is_dead:
            return
        self.note(f"{process.name} ({process.number}) {why}")
        process.is_dead = True
        for fiber in process.fibers:
            self.wake(fiber, self.time)
        for child in process.children:
            if not child.is_dead:
                delay = self.random.choice([0.0, 1.0, 30.0, 100.0])
                self.spawn(child, lambda child=child, delay=delay: (self.sleep(delay), self.kill(child)))

    @property
    def process(self) -> Process:
        """The one that goes on now."""
        current = greenlet.getcurrent()
        assert isinstance(current, Fiber), "the simulation itself takes no steps"
        return current.process

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let time pass until something is so."""
        while not is_over():
            if not self._waiting:
                raise EndlessError("everybody waits")
            time, _, _, fiber, turn = heapq.heappop(self._waiting)
            if fiber.dead or turn != fiber.turn:
                continue
            self.time = max(self.time, time)
            process = fiber.process
            if process.frozen_until > self.time and not process.is_dead:
                self.wake(fiber, process.frozen_until)
                continue
            self.events += 1
            if self.events > MOST_EVENTS:
                raise EndlessError(f"no end after {self.time:.0f} seconds")
            if not process.is_dead:
                fiber.switch()
            elif fiber:  # it has begun
                fiber.throw(Crash())

    def end(self) -> None:
        """End what is left."""
        self.disasters = 0
        while self._waiting:
            fiber = heapq.heappop(self._waiting)[3]
            fiber.process.is_dead = True
            if fiber:  # it has begun, and not ended
                fiber.throw(Crash())

    # Time

    def wake(self, fiber: Fiber, time: float) -> None:
        """Let a fiber go on at a time, whatever it waited for."""
        fiber.turn += 1
        entry = (time, self.random.random(), len(self._waiting), fiber, fiber.turn)
        heapq.heappush(self._waiting, entry)

    def sleep(self, seconds: float) -> None:
        """Let time pass for who calls it; an observer from outside has no time."""
        fiber = greenlet.getcurrent()
        if not isinstance(fiber, Fiber):
            return
        if fiber.process.is_dead:
            raise Crash
        self.wake(fiber, self.time + seconds)
        self._hub.switch()

    def park(self) -> None:
        """Let others go on until somebody wakes who calls it."""
        if self.process.is_dead:
            raise Crash
        self._hub.switch()

    def monotonic(self) -> float:
        return self.time

    now = monotonic

    def time_ns(self) -> int:
        return int(self.wall().timestamp() * 1e9)

    def wall(self) -> datetime:
        """The time of day, which somebody sets now and then."""
        if self._has(0.002):
            self._skew = self.random.choice([0.0, -3.0, 3600.0, -86400.0])
            self.note(f"the clock is set {self._skew:+g} seconds wrong")
        return datetime(2030, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self.time + self._skew)

    # Disasters

    def step(self, what: str, service: str = "") -> None:
        """Before something is read or written. Raises OSError where a service does not answer."""
        fiber = greenlet.getcurrent()
        if not isinstance(fiber, Fiber):
            return
        process = fiber.process
        if process.is_dead:
            raise Crash
        if self.disasters > 0:
            self._meet(process, what, service)
        self.sleep(self.random.random() * 0.02)
        self.note(what)
        if service and self._away.get(service, 0.0) > self.time:
            raise OSError(f"{service} does not answer")

    def _meet(self, process: Process, what: str, service: str) -> None:
        """Let a disaster come, or not, before a step."""
        if self._has(self.kill_chance):
            self.kill(process, f"crashes before it does {what}")
            raise Crash
        if self._has(self.freeze_chance):
            self.has_frozen = True
            process.frozen_until = self.time + self.random.choice([5.0, 40.0, 70.0, 200.0])
            self.note(f"{process.name} freezes before it does {what}")
        if service and self._has(self._away_chance):
            self._away[service] = self.time + self.random.choice([1.0, 20.0, 100.0, 300.0])
            self.note(f"{service} goes away")

    def answer(self, what: str) -> None:
        """After something was written: the answer may be lost. Raises OSError."""
        if self._has(self._lost_chance):
            self.note(f"the answer is lost: {what}")
            raise OSError("the connection was lost")

    def calm(self) -> None:
        """End all disasters."""
        self.disasters = 0
        self._away.clear()

    def _has(self, chance: float) -> bool:
        """Whether a disaster comes now."""
        if self.disasters > 0 and chance and self.random.random() < chance:
            self.disasters -= 1
            return True
        return False

    def note(self, what: str) -> None:
        self._notes.append((self.time, greenlet.getcurrent(), what))

    @property
    def trace(self) -> Iterator[str]:
        """What has happened, a line each."""
        for time, fiber, what in self._notes:
            who = f"{fiber.process.name} ({fiber.process.number})" if isinstance(fiber, Fiber) else "-"
            yield f"{time:9.2f} {who}: {what}"

    def violated(self, what: str) -> None:
        """Remember what must not be: who notices it may not be able to raise anything."""
        self.note(f"VIOLATED: {what}")
        self.violations.append(what)


class Event:
    """As threading.Event, of fibers."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_set = False
        self._waiting: list[Fiber] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for fiber in self._waiting:
            self._world.wake(fiber, self._world.time)
        self._waiting.clear()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            fiber = greenlet.getcurrent()
            assert isinstance(fiber, Fiber), "only who has time waits"
            self._waiting.append(fiber)
            if timeout is None:
                self._world.park()
            else:
                self._world.sleep(timeout)
            if fiber in self._waiting:
                self._waiting.remove(fiber)
        return self._is_set


class Thread:
    """As threading.Thread, of fibers: it ends with its process."""

    def __init__(
        self, world: World, target: Callable[..., object], args: Sequence[Any] = (), **_: Any
    ) -> None:
        self._world = world
        self._run = lambda: target(*args)
        self._ended = Event(world)
        self.ident: int | None = None

    def start(self) -> None:
        self.ident = 1
        self._world.spawn(self._world.process, self._live)

    def _live(self) -> None:
        self._run()
        self._ended.set()

    def is_alive(self) -> bool:
        return self.ident is not None and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)


class Threading:
    """As the module threading, of fibers."""

    def __init__(self, world: World) -> None:
        self.Event = lambda: Event(world)  # noqa: N803, RUF100 (the module's names)
        self.Thread = lambda **options: Thread(world, **options)
        self.Lock = nullcontext
