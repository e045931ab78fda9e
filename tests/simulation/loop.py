"""True time and what happens in it: a queue of events, one source of chance, one trace."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any


class Loop:
    """Events in the order of their time, those of one time in the order they were planned."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.dice = random.Random(f"run {seed}")
        self.trace: list[str] = []
        self.faults: list[str] = []
        self.steps = 0
        self.after_step: Callable[[], None] = lambda: None
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()
        self._stamp = 0.0

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Plan an event; one in the past happens now."""
        heapq.heappush(self._queue, (max(when, self.now), next(self._count), what, arguments))

    def later(self, delay: float, what: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay, what, *arguments)

    def tell(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now:9.4f} {who:>4} {what}")

    def fault(self, what: str) -> None:
        """Something that must not happen has happened."""
        self.tell("!", what)
        self.faults.append(what)

    def stamp(self) -> float:
        """Now, and later than every stamp before: the order of a history when time stands still."""
        self._stamp = max(self.now, math.nextafter(self._stamp, math.inf))
        return self._stamp

    def random16(self) -> bytes:
        return self.dice.randbytes(16)

    def random63(self) -> int:
        return self.dice.getrandbits(63)

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Let events happen until the time has come or it is done."""
        while self._queue and not done():
            when, _, what, arguments = self._queue[0]
            if when > until:
                break
            heapq.heappop(self._queue)
            self.now = when
            what(*arguments)
            self.steps += 1
            self.after_step()


class Pausable:
    """Somebody who may stand still: what would happen to it then happens afterwards.

    Each line (a connection, a timer, a thread) goes on at a moment of its own, so that any may be
    the first; what comes on one line stays in order.
    """

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop = loop
        self.name = name
        self._wakes: dict[str, float] = {}
        self._until = 0.0

    def pause(self, seconds: float) -> None:
        if self.loop.now >= self._until:
            self.loop.tell(self.name, f"stands still for {seconds:.3f}")
            self._until = self.loop.now + seconds
            self._wakes.clear()

    def held_up(self, line: str, again: Callable[..., None], *arguments: Any) -> bool:
        """Whether it stands still; then ``again`` is called when this line goes on."""
        if self.loop.now >= self._wakes.get(line, self._until):
            return False
        if line not in self._wakes:
            self._wakes[line] = self._until + self.loop.dice.random() * 0.01
        self.loop.at(self._wakes[line], again, *arguments)
        return True
