"""Events that greenlets wait for, and other threads set."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from dstore.errors import NodeClosed


class GreenletEvent:
    """An event that any thread may set once, and one greenlet waits for."""

    def __init__(self, inbox: HubInbox) -> None:
        self.is_set = False
        self.timed_out = False
        self.greenlet: Any = None  # while it waits
        self._inbox = inbox

    def set(self) -> None:
        self.is_set = True
        self._inbox.put(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Return when the event is set, or after ``timeout`` seconds. Returns whether it is set.

        Other greenlets run meanwhile, even if the event is set already. Raises NodeClosed in a
        child that was forked meanwhile.
        """
        return self._inbox.wait(self, timeout)

    def __await__(self) -> Generator[Any, Any, None]:
        self.wait()
        yield from ()

    def expire(self) -> None:
        """End the wait because its time is up. For the hub."""
        self.timed_out = True
        self.resume()

    def resume(self) -> None:
        """Switch to the greenlet, if it still waits. For the hub."""
        if self.greenlet is not None:
            self.greenlet.switch()


class HubInbox:
    """The events of the greenlets of one hub. Setting one wakes the hub, from any thread."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self._pid = os.getpid()
        self._set: deque[GreenletEvent] = deque()
        self._waiting: set[GreenletEvent] = set()

    def new_event(self) -> GreenletEvent:
        """An event for the greenlet that runs here."""
        return GreenletEvent(self)

    def put(self, event: GreenletEvent) -> None:
        """Have the hub resume the greenlet that waits for this event. From any thread."""
        self._set.append(event)
        self._wake()

    def wait(self, event: GreenletEvent, timeout: float | None) -> bool:
        """See :meth:`GreenletEvent.wait`."""
        if not self._waiting:
            self._open()
        self._waiting.add(event)
        cancel = None
        try:
            if timeout is not None:
                cancel = self._after(timeout, event.expire)
            event.greenlet = current_greenlet()
            if event.is_set:  # other greenlets run nevertheless
                self._soon(event.resume)
            while True:
                self.hub.switch()
                if event.is_set or event.timed_out:
                    return event.is_set
                if self._pid != os.getpid():
                    raise NodeClosed("the process was forked during the call, in this child")
        finally:
            event.greenlet = None
            if cancel is not None:
                cancel()
            self._waiting.discard(event)
            if not self._waiting and self._pid == os.getpid():
                self._shut()
                self._set.clear()  # events whose greenlets did not have to wait

    def forked(self) -> None:
        """Resume the waiting greenlets in a forked child, where the parent sets no event."""
        if self._waiting:
            self._shut()
            for event in self._waiting:
                self._soon(event.resume)

    def _resume_set(self) -> None:
        """Resume the greenlets whose events are set. For the hub."""
        while self._set:
            event = self._set.popleft()
            if event in self._waiting:
                self._soon(event.resume)

    def _open(self) -> None:
        """Called when the first greenlet begins to wait."""

    def _shut(self) -> None:
        """Called when no greenlet waits any more."""

    def _wake(self) -> None:
        """Have the hub call :meth:`_resume_set`. From any thread."""
        raise NotImplementedError

    def _soon(self, do: Callable[[], None]) -> None:
        """Have the hub call a function. In the hub's thread."""
        raise NotImplementedError

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        """Have the hub call a function later. Returns a function that cancels this."""
        raise NotImplementedError


def current_greenlet() -> Any:
    """The greenlet that runs in this thread."""
    return sys.modules["greenlet"].getcurrent()
