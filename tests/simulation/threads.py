"""A bucket, and processes that use it, in simulated time: deterministic, by the seed."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from gpm_tune.lease import Clock


class World(Clock):
    """Actors, each a thread of which one at a time goes on: a random one of those whose time has come.

    It is a bucket, too: what is read or written counts at a random moment of the call, which takes up to
    `longest` seconds.
    """

    def __init__(self, seed: int, longest: float) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.longest = longest
        self.objects: dict[str, bytes] = {}
        self._time = 0.0
        self._skew = timedelta()
        self._waiting: list[tuple[float, float, threading.Semaphore]] = []
        self._turn = threading.Semaphore(0)
        self._errors: list[BaseException] = []

    def now(self) -> float:
        return self._time

    def wall(self) -> datetime:
        """As a clock that someone sets again and again."""
        if self.random.random() < 0.05:
            self._skew = timedelta(hours=self.random.uniform(-1000, 1000))
        return datetime(2030, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=self._time) + self._skew

    def sleep(self, seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            return  # an observer, to whom all is there at once
        mine = threading.Semaphore(0)
        heapq.heappush(self._waiting, (self._time + seconds, self.random.random(), mine))
        self._turn.release()
        mine.acquire()

    def read(self, location: str) -> bytes:
        moment = self.random.uniform(0, self.longest)
        self.sleep(moment)
        content = self.objects.get(location)
        self.sleep(self.random.uniform(0, self.longest - moment))
        if content is None:
            raise FileNotFoundError(location)
        return content

    def write(self, location: str, content: bytes, longest: float | None = None) -> None:
        longest = self.longest if longest is None else longest
        moment = self.random.uniform(0, longest)
        self.sleep(moment)
        self.objects[location] = content
        self.sleep(self.random.uniform(0, longest - moment))

    def delete_file(self, location: str) -> None:
        moment = self.random.uniform(0, self.longest)
        self.sleep(moment)
        self.objects.pop(location, None)
        self.sleep(self.random.uniform(0, self.longest - moment))

    def run(self, actors: list[Callable[[], None]], look: Callable[[], None]) -> None:
        """Let the actors live until all have ended; look after each step."""
        for actor in actors:
            threading.Thread(target=self._live, args=(actor,), daemon=True).start()
            self._turn.acquire()
        while self._waiting:
            self._time, _, actor_turn = heapq.heappop(self._waiting)
            actor_turn.release()
            self._turn.acquire()
            if self._errors:
                raise self._errors[0]
            look()

    def _live(self, actor: Callable[[], None]) -> None:
        try:
            self.sleep(0)
            actor()
        except BaseException as error:
            self._errors.append(error)
        self._turn.release()
