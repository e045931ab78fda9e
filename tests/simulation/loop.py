"""Simulated time: a queue of events, one source of randomness, one trace."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

DEPTH_MAX = 3
"""Events that may stand still within one another."""


class Died(BaseException):
    """A process has died in the middle of an event, which ends here."""


class Loop:
    """Runs events in the order of their time, and at one time in the order they were planned."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.dice = random.Random(f"run {seed}")
        self.trace: list[str] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.steps = 0
        self.quiet = False  # no more faults
        self.after_step: Callable[[], None] = lambda: None
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()
        self._numbers = itertools.count(1)
        self._stamp = 0.0
        self._depth = 0

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Plan an event; one in the past happens now."""
        heapq.heappush(self._queue, (max(when, self.now), next(self._count), what, arguments))

    def later(self, delay: float, what: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay, what, *arguments)

    def log(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now:9.4f} {who:>4} {what}")

    def violation(self, what: str) -> None:
        """Record that a condition was broken, or something happened that must not."""
        self.log("!", what)
        self.violations.append(what)

    def stamp(self) -> float:
        """A time for the history: now, or just after the last stamp if time has not advanced."""
        self._stamp = max(self.now, math.nextafter(self._stamp, math.inf))
        return self._stamp

    def number(self) -> int:
        """A number that does not come again."""
        return next(self._numbers)

    def random16(self) -> bytes:
        return self.dice.randbytes(16)

    def random63(self) -> int:
        return self.dice.getrandbits(63)

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Run events until this time, or until ``done`` returns True."""
        while self._queue and not done():
            when, _, what, arguments = self._queue[0]
            if when > until:
                break
            heapq.heappop(self._queue)
            self.now = when
            try:
                what(*arguments)
            except Died:
                pass
            self.steps += 1
            self.after_step()

    def stand_still(self, seconds: float) -> None:
        """In the middle of an event: run what others do meanwhile, then go on with it."""
        if self._depth == DEPTH_MAX:
            return
        self._depth += 1
        until = self.now + seconds
        try:
            self.run(until, lambda: bool(self.violations))
        except Exception as error:  # not for the caller, who handles failures of its own
            self.violation(f"{type(error).__name__}: {error}")
        finally:
            self._depth -= 1
        self.now = max(self.now, until)


class Pausable:
    """A process that can be paused: its events are then delayed until after the pause.

    Each of its lines (a connection, a timer, a thread) resumes at a random moment, so that any may
    be the first. Events of one line stay in order.
    """

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop = loop
        self.name = name
        self._wakes: dict[str, float] = {}
        self._until = 0.0

    def pause(self, seconds: float) -> None:
        if self.loop.now >= self._until:
            self.loop.log(self.name, f"stands still for {seconds:.3f}")
            self._until = self.loop.now + seconds
            self._wakes.clear()

    @property
    def paused(self) -> bool:
        return self.loop.now < self._until

    def held_up(self, line: str, again: Callable[..., None], *arguments: Any) -> bool:
        """Whether it is paused; then ``again`` is called when this line resumes."""
        if self.loop.now >= self._wakes.get(line, self._until):
            return False
        if line not in self._wakes:
            self._wakes[line] = self._until + self.loop.dice.random() * 0.01
        self.loop.at(self._wakes[line], again, *arguments)
        return True
