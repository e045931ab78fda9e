"""The calls of tasks and greenlets that are under way, and their timers."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

from dstore.client.commands import Command
from dstore.core.local.steps import Operation, Request, Step

TIMERS_MIN = 64
"""Timers that are kept without a look at how many of them are still needed."""
NEVER = float("inf")


class LoopCall:
    """One command of a task, under way. It waits for one step at a time.

    ``done`` is called when it is over, by any thread and without a lock; but not if it is over
    when it has just begun, nor when it has been cancelled.
    """

    def __init__(self, command: Command[Any], done: Callable[[], None]) -> None:
        self.command = command
        self.done = done
        self.abort = command.abort  # until it has been called
        self.begun = False
        self.over = False
        self.cancelled = False  # nothing waits for it any more
        self.reason: BaseException | None = None  # why, until ``abort`` has been called with it
        self.value: Any = None
        self.error: BaseException | None = None
        self.operation: Operation[Any] | None = None
        self.step: Step | None = None
        self.timer = 0  # its number; 0 for none
        self.busy = False  # a helper thread works for it, or will
        # Of the pipeline:
        self.request: Request | None = None  # that it waits for now
        self.sent = False  # whether that has been sent
        self.number = 0  # of the request that is counted
        self.in_flight: tuple[int, int] | None = None  # bytes and reads that it is counted with

    def result(self) -> Any:
        """Return the result of a call that is over, or raise its error."""
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error  # it refers to this frame: no circle is left


class Timers:
    """The times of calls, in order. Each call has one at most; a later one replaces the earlier."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, LoopCall]] = []
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def wake_at(self) -> float:
        """When the next timer is due."""
        return self._heap[0][0] if self._heap else NEVER

    def set(self, call: LoopCall, at: float) -> None:
        """Set the timer of a call. To clear it, set ``call.timer`` to 0."""
        call.timer = next(self._numbers)
        heapq.heappush(self._heap, (at, call.timer, call))

    def pop(self, now: float) -> LoopCall | None:
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
