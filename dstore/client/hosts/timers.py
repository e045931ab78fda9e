"""Timers of calls: each call has one at most, and a later one takes the place of the earlier."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, Protocol, TypeVar

TIMERS_MIN = 64
"""Timers that are kept without a look at how many of them are still needed."""
NEVER = float("inf")


class Timed(Protocol):
    """Has a timer, whose number is ``timer``; 0 for none."""

    timer: int


C = TypeVar("C", bound=Timed)


class Timers(Generic[C]):
    """The times of calls, in order."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, C]] = []
        self._numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Timers {len(self._heap)}>"

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def wake_at(self) -> float:
        """When the next timer is due."""
        return self._heap[0][0] if self._heap else NEVER

    def set(self, call: C, at: float) -> None:
        """Set the timer of a call. To clear it, set ``call.timer`` to 0."""
        call.timer = next(self._numbers)
        heapq.heappush(self._heap, (at, call.timer, call))

    def pop(self, now: float) -> C | None:
        """Return a call whose time is up, and clear its timer; None if there is none."""
        while self._heap and self._heap[0][0] <= now:
            _, number, call = heapq.heappop(self._heap)
            if call.timer == number:
                call.timer = 0
                return call
        return None

    def tidy(self, needed: int) -> None:
        """Forget cleared timers now and then; all timers when none is ``needed``."""
        if not needed:
            self._heap.clear()
        elif len(self._heap) > TIMERS_MIN + 2 * needed:
            self._heap = [each for each in self._heap if each[2].timer == each[1]]
            heapq.heapify(self._heap)
