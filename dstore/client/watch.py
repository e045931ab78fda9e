"""What a program hears of deletions: a bounded queue between the background thread and it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from dstore import checks, config
from dstore.errors import GlobalUnavailable, NodeClosed
from dstore.protocol.keys import from_bytes, public, to_bytes
from dstore.protocol.messages import Key
from dstore.runtime import clock, native
from dstore.runtime import greenlets as green
from dstore.runtime.hub_inbox import HubInbox
from dstore.runtime.logs import Log
from dstore.runtime.native import Empty, SimpleQueue
from dstore.transport.limits import no_threads

log = Log("dstore.local")

LIMIT_DEFAULT = 10_000
"""Events that wait to be taken; if there are more, the oldest go."""
WAIT_MAX = 0.5
"""Seconds of waiting in one go. A signal that comes in the instant before a wait begins is noticed
by Python only after it.
"""


class Event(NamedTuple):
    """The value of ``key`` has been deleted or replaced.

    It has taken effect: a ``get`` finds what is there now. Without a key (*resync*) any value may
    have gone: at the beginning, after Global was away for long or has restarted, and when events
    were not taken quickly enough; ``missed`` is how many were lost for that last reason.
    """

    key: str | bytes | None
    missed: int = 0

    @property
    def resync(self) -> bool:
        """Whether everything has to be looked at anew."""
        return self.key is None


class Watch:
    """The events of one Node whose keys begin with a prefix; an iterator, and a context manager.

    Made by :meth:`dstore.Node.watch`. It ends when it or the Node is closed, and in a forked
    child. Safe from any thread; each event goes to one of those who take them. What is not taken
    costs nobody anything: the queue is bounded.
    """

    def __init__(self, prefix: Key, limit: int) -> None:
        self.missed = 0
        self._prefix = to_bytes(prefix)
        self._limit = limit
        self._told = 0  # of those missed
        self.over = False
        # Unlike a lock, this can be met again in a signal handler.
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._signals: deque[Callable[[], None]] = deque()

    def __repr__(self) -> str:
        state = "ended" if self.over else f"{self._events.qsize()} waiting"
        return f"<dstore.Watch {public(from_bytes(self._prefix))!r} {state}, {self.missed} missed>"

    # ---- for the program ------------------------------------------------------------------

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Event:
        event = self.take()
        if event is None:
            raise StopIteration
        return event

    def take(self, timeout: float | None = None) -> Event | None:
        """The next event; None if none comes within ``timeout`` seconds, or the watch has ended.

        Without ``timeout`` it waits for as long as it takes. Raises TypeError and ValueError.
        """
        checks.optional(checks.seconds, "timeout", timeout, 0, config.WAIT_MAX)
        end = clock.now() + timeout if timeout is not None else float("inf")
        inbox = green.here()
        if inbox is not None:
            return self._take_green(inbox, end)
        while True:
            try:
                return self._next(max(0.0, min(end - clock.now(), WAIT_MAX)))
            except Empty:
                if clock.now() >= end:
                    return None

    def _take_green(self, inbox: HubInbox, end: float) -> Event | None:
        """The same for a greenlet: while it waits, others run."""
        while True:
            ready = inbox.new_event()
            tell = ready.set
            try:
                return self.poll(tell)
            except Empty:
                left = end - clock.now()
            try:
                if left <= 0 or not ready.wait(None if left == float("inf") else left):
                    return None
            finally:
                self.forget(tell)

    def poll(self, signal: Callable[[], None]) -> Event | None:
        """The next event, or None if the watch has ended.

        Raises Empty if there is none; then ``signal`` is called, once, when there may be one.
        """
        with contextlib.suppress(Empty):
            return self._next(0)
        self._signals.append(signal)
        return self._next(0)  # what came in between has not signalled

    def forget(self, signal: Callable[[], None]) -> None:
        """Nobody waits for this signal any more."""
        with contextlib.suppress(ValueError):
            self._signals.remove(signal)

    def close(self) -> None:
        """End it. What has not been taken is dropped. Idempotent."""
        self.over = True
        self._add(None)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _next(self, timeout: float) -> Event | None:
        """The next event, or None at the end. Raises Empty."""
        if self.over:
            return None
        missed = self.missed
        if missed != self._told:
            missed, self._told = missed - self._told, missed
            return Event(None, missed)
        event = self._events.get(timeout > 0, timeout)
        if event is None:
            self._events.put(None)  # for others who wait
        return event

    # ---- for the Local --------------------------------------------------------------------

    def put(self, key: Key | None) -> None:
        """The value of a key is gone; None: any may be. Never waits."""
        if key is not None and not to_bytes(key).startswith(self._prefix):
            return
        while self._events.qsize() >= self._limit:
            try:
                self._events.get_nowait()
                self.missed += 1
            except Empty:
                break
        self._add(Event(None if key is None else public(key)))

    def _add(self, event: Event | None) -> None:
        self._events.put(event)
        while self._signals:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._signals.popleft()()


def call_back(watch: Watch, callback: Callable[[Event], None]) -> None:
    """Call a function with each event, in a thread of its own, until the watch ends.

    Raises GlobalUnavailable if the system gives no thread.
    """

    def serve() -> None:
        for event in watch:
            try:
                callback(event)
            except NodeClosed:  # as it may at any time: the watch is about to end
                log.debug("the callback of a watch found a Node closed")
            except Exception:
                log.exception("the callback of a watch failed with %r", event)

    thread = native.Thread(serve, "dstore-watch")
    try:
        thread.start()
    except RuntimeError as error:
        watch.close()
        raise GlobalUnavailable(no_threads(error)) from None
