"""Watches: bounded queues of deletions between the background thread and a program."""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dstore import checks, config
from dstore.client.hosts.core import Host
from dstore.core.local.watching import ALL, Removal
from dstore.errors import (
    AccessDenied,
    DstoreError,
    GlobalUnavailable,
    NodeClosed,
    WrongServer,
    copy_of,
)
from dstore.protocol.keys import from_bytes, public, to_bytes
from dstore.protocol.messages import Key
from dstore.quoting import visible
from dstore.runtime import clock, native
from dstore.runtime import greenlets as green
from dstore.runtime.greenlets import HubInbox
from dstore.runtime.logs import Log
from dstore.runtime.native import Empty, SimpleQueue
from dstore.transport.limits import no_threads

log = Log("dstore.local")


class Event(NamedTuple):
    """A deletion or replacement of the value of ``key`` that has taken effect.

    A ``get`` returns the present value. An event without a key is a *resync*: any value may have
    been deleted. It comes at the beginning, after Global was unreachable for long or has
    restarted, and after events were not taken quickly enough; ``missed`` is the number of events
    that were dropped for that last reason.
    """

    key: str | bytes | None
    missed: int = 0

    @property
    def resync(self) -> bool:
        """Whether all keys have to be read again."""
        return self.key is None


class Watch:
    """The events of one Node for keys with a prefix: an iterator and a context manager.

    Made by :meth:`dstore.Node.watch`. It ends when it or the Node is closed, and in a forked
    child. Safe from any thread and from signal handlers; each event goes to one of the threads
    that take them. The queue is bounded, so that a slow program delays no deletion.

    Taking an event raises AccessDenied or WrongServer once when Global does not let this client in
    any more. The watch goes on, with events and resyncs, once it does.
    """

    def __init__(self, prefix: Key, limit: int, left: Callable[[], None] = lambda: None) -> None:
        self._left = left  # called when it is closed or dropped
        weakref.finalize(self, left).atexit = False
        self.missed = 0
        self._prefix = to_bytes(prefix)
        self._limit = limit
        self._missed_reported = 0
        self.over = False
        # A signal handler may use it while the same thread does; with a lock it would hang.
        self._events: SimpleQueue[Event | DstoreError | None] = SimpleQueue()
        self._signals: deque[Callable[[], None]] = deque()

    def __repr__(self) -> str:
        state = "ended" if self.over else f"{self._events.qsize()} waiting"
        return f"<dstore.Watch {public(from_bytes(self._prefix))!r} {state}, {self.missed} missed>"

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Event:
        event = self.take()
        if event is None:
            raise StopIteration
        return event

    def take(self, timeout: float | None = None) -> Event | None:
        """Take the next event; None if none comes within ``timeout`` seconds, or the watch ended.

        ``timeout`` is 0 to 31,536,000 seconds; None waits for ever. Raises TypeError and
        ValueError.
        """
        checks.optional(checks.seconds, "timeout", timeout, 0, config.WAIT_MAX)
        end = clock.now() + timeout if timeout is not None else float("inf")
        inbox = green.here()
        if inbox is not None:
            return self._take_green(inbox, end)
        while True:
            try:
                return self._next(max(0.0, min(end - clock.now(), native.WAIT_SLICE)))
            except Empty:
                if clock.now() >= end:
                    return None

    def _take_green(self, inbox: HubInbox, end: float) -> Event | None:
        while True:
            ready = inbox.new_event()
            wake = ready.set
            try:
                return self.poll(wake)
            except Empty:
                left = end - clock.now()
            try:
                if left <= 0 or not ready.wait(None if left == float("inf") else left):
                    return None
            finally:
                self.forget(wake)

    def poll(self, signal: Callable[[], None]) -> Event | None:
        """Take the next event; None if the watch has ended. Never waits.

        Raises Empty if there is none. Then ``signal`` is called once, when there may be one.
        """
        with contextlib.suppress(Empty):
            return self._next(0)
        self._signals.append(signal)
        return self._next(0)  # an event that came in between has not called ``signal``

    def forget(self, signal: Callable[[], None]) -> None:
        """Remove a signal, so that it is not called any more."""
        with contextlib.suppress(ValueError):
            self._signals.remove(signal)

    def close(self) -> None:
        """End the watch. Events that were not taken are dropped. Idempotent."""
        self.over = True
        self._add(None)
        self._left()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _next(self, timeout: float) -> Event | None:
        """Take the next event, or None at the end. Raises Empty after ``timeout`` seconds."""
        if self.over:
            return None
        missed = self.missed
        if missed != self._missed_reported:
            missed, self._missed_reported = missed - self._missed_reported, missed
            return Event(None, missed)
        event = self._events.get(timeout > 0, timeout)
        if event is None:
            self._events.put(None)  # for other threads that wait
        if isinstance(event, DstoreError):
            raise event
        return event

    def put(self, key: Key | None) -> None:
        """Add the deletion of a key, or a resync if it is None. Never waits."""
        if key is not None and not to_bytes(key).startswith(self._prefix):
            return
        while self._events.qsize() >= self._limit:
            try:
                self._events.get_nowait()
                self.missed += 1
            except Empty:
                break
        self._add(Event(None if key is None else public(key)))

    def deny(self, error: DstoreError) -> None:
        """Let the program know, once, that Global does not let this client in. Never waits.

        The watch goes on, with events and resyncs, when the client is let in again.
        """
        self._add(copy_of(error))

    def _add(self, event: Event | DstoreError | None) -> None:
        self._events.put(event)
        while self._signals:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._signals.popleft()()


class Watches:
    """The watches of one Local, by number. One that the program has dropped leaves by itself."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        self._watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()

    def begin(self, prefix: Key, limit: int) -> Watch:
        """Return a new watch of the keys that begin with ``prefix``. Raises as :meth:`add`."""
        watch = Watch(prefix, limit, self.waker())
        self.add(watch)
        return watch

    def waker(self) -> Callable[[], None]:
        """Return what is to be called when a watch was closed: it ends here soon."""
        wake, here = self._host.link.control.wake, os.getpid()

        def left() -> None:
            if os.getpid() == here:  # the descriptors of a forked child may be others
                wake()

        return left

    def add(self, watch: Watch) -> None:
        """Put events into a watch from now on; a resync is the first.

        Raises NodeClosed, and AccessDenied or WrongServer if Global does not let this client in.
        """
        host = self._host

        def begin() -> None:
            with host.lock:
                host.check_open()
                if host.state.denied is not None:
                    raise copy_of(host.state.denied)
                number = next(self._numbers)
                self._watches[number] = watch
                host.state.watch(number, clock.now())
            host.link.control.wake()

        host.call(begin)

    @property
    def present(self) -> list[Watch]:
        """The watches that have not ended."""
        return [each for each in list(self._watches.values()) if not each.over]

    def leave(self) -> None:
        """Put no more events into any watch, and do not end them: others go on to do so."""
        self._watches.clear()

    def end_closed(self) -> dict[int, Watch]:
        """End the watches that were closed or dropped. Returns the others, by number.

        The caller holds the lock.
        """
        watching = self._host.state.watching
        watches = {n: watch for n, watch in self._watches.items() if not watch.over}
        for number in watching.watchers - set(watches):
            watching.end(number)
        return watches

    def announce(self, removals: list[Removal]) -> None:
        """Put removals into the watches that they concern. In the background thread."""
        with self._host.lock:
            watches = self.end_closed()
        for removal in removals:
            for number, watch in watches.items():
                if removal.watcher in (ALL, number):
                    watch.put(removal.key)

    def deny(self, error: DstoreError) -> None:
        """Let all watches know that Global does not let this client in."""
        for watch in list(self._watches.values()):
            watch.deny(error)

    def end(self) -> None:
        """Close all watches: the Node is closed, or this is a forked child, where nothing comes."""
        for watch in list(self._watches.values()):
            watch.close()


def call_back(watch: Watch, callback: Callable[[Event], None]) -> None:
    """Call a function with each event, in a thread of its own.

    Raises GlobalUnavailable if the system has no more threads.
    """

    def events() -> Iterator[Event]:
        while not watch.over:
            try:
                yield from watch
            except (AccessDenied, WrongServer) as error:
                log.warning("a watch has no events for now: %s", visible(str(error)))

    def serve() -> None:
        for event in events():
            try:
                callback(event)
            except NodeClosed:  # the Node may be closed at any time: the watch is about to end
                log.debug("the callback of a watch found a Node closed")
            except Exception:
                log.exception("the callback of a watch failed with %r", event)

    thread = native.Thread(serve, "dstore-watch")
    try:
        thread.start()
    except RuntimeError as error:
        watch.close()
        raise GlobalUnavailable(no_threads(error)) from None
