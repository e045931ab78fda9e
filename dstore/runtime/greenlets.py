"""Greenlets that wait for other threads: what gevent and eventlet do differently.

A greenlet that has to wait for Global lets the others of its thread run. It carries out a command as a
task of an event loop does, in a coroutine (see :mod:`dstore.client.hosts.conduct`); only its :func:`signal`
waits by itself, in the hub of its thread, so that :func:`finish` runs the coroutine in one go. No
thread is needed for each that waits: a thousand greenlets may wait for a key, and another one sets
it.

What counts is whether the calling thread has a hub, and not what has been patched. A thread
without a hub (the native threads of gevent's and eventlet's pools, and those of dstore) has no
other greenlets, and blocks; so does the hub itself, as in a signal handler.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from dstore.errors import NodeClosed
from dstore.runtime import event_loops as loops
from dstore.runtime import logs, native
from dstore.runtime.waker import Waker

T = TypeVar("T")


def here() -> Inbox | None:
    """The inbox of the greenlets that would stand still if this one blocked. None if there are
    none: it may block.
    """
    gevent = sys.modules.get("gevent._hub_local")
    if gevent is not None:
        hub = gevent.get_hub_if_exists()
        if hub is not None:
            return None if _current() is hub else _inbox_of(hub, _GeventInbox)
    eventlet = sys.modules.get("eventlet.hubs")
    if eventlet is not None:
        hub = getattr(eventlet._threadlocal, "hub", None)
        if hub is not None:
            return None if _current() is hub.greenlet else _inbox_of(hub, _EventletInbox)
    return None


def finish(task: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits nothing but signals of this module."""
    try:
        task.send(None)
    except StopIteration as stop:
        done: T = stop.value
        return done
    raise RuntimeError("it waits for something that no greenlet can wait for")


def blocking(do: Callable[[], None]) -> None:
    """Call a function that blocks. In a greenlet, in a thread of its own, while others run."""
    inbox = here()
    if inbox is None:
        do()
        return
    begun = False

    def begin() -> None:
        nonlocal begun
        begun = True
        do()

    try:
        finish(loops.in_thread(begin, inbox.signal))
    except RuntimeError:
        if begun:
            raise
        do()  # there can be no more threads, as when Python (3.12) is about to exit


class GreenSignal:
    """Set once, from any thread, and awaited by one greenlet."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._greenlet: Any = None  # while it waits
        self.is_set = False
        self.timed_out = False

    def set(self) -> None:
        self.is_set = True
        self._inbox.put(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Return when it is set, or after ``timeout`` seconds. Whether it is set.

        Other greenlets run meanwhile, also if it is set already. Raises NodeClosed in a child that
        was forked meanwhile.
        """
        return self._inbox.wait(self, timeout)

    def __await__(self) -> Generator[Any, Any, None]:
        self.wait()
        yield from ()

    def expire(self) -> None:
        """In the hub: its time is up."""
        self.timed_out = True
        self.resume()

    def resume(self) -> None:
        """In the hub: let the greenlet look, if it still waits."""
        if self._greenlet is not None:
            self._greenlet.switch()


class Inbox:
    """The signals that are set for the greenlets of one hub; it is woken once for all of them."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self._pid = os.getpid()
        self._set: deque[GreenSignal] = deque()
        self._waiting: set[GreenSignal] = set()

    def signal(self) -> GreenSignal:
        """A signal for the greenlet that runs here."""
        return GreenSignal(self)

    def put(self, signal: GreenSignal) -> None:
        """In any thread."""
        self._set.append(signal)
        self._wake()

    def wait(self, signal: GreenSignal, timeout: float | None) -> bool:
        """See :meth:`GreenSignal.wait`."""
        if not self._waiting:
            self._open()
        self._waiting.add(signal)
        cancel = None
        try:
            if timeout is not None:
                cancel = self._after(timeout, signal.expire)
            signal._greenlet = _current()
            if signal.is_set:  # others run all the same
                self._soon(signal.resume)
            while True:
                self.hub.switch()
                if signal.is_set or signal.timed_out:
                    return signal.is_set
                if self._pid != os.getpid():
                    raise NodeClosed("the process was forked during the call, in this child")
        finally:
            signal._greenlet = None
            if cancel is not None:
                cancel()
            self._waiting.discard(signal)
            if not self._waiting and self._pid == os.getpid():
                self._shut()
                self._set.clear()  # of those who did not have to wait

    def _empty(self) -> None:
        """In the hub."""
        while self._set:
            signal = self._set.popleft()
            if signal in self._waiting:
                self._soon(signal.resume)

    def forked(self) -> None:
        """In the child: nobody will set a signal of the parent. Those who wait are told."""
        if self._waiting:
            self._shut()
            for signal in self._waiting:
                self._soon(signal.resume)

    def _open(self) -> None:
        """The first begins to wait."""

    def _shut(self) -> None:
        """Nobody waits any more."""

    def _wake(self) -> None:
        """In any thread: have the hub call :meth:`_empty`."""
        raise NotImplementedError

    def _soon(self, do: Callable[[], None]) -> None:
        """In the thread of the hub: have the hub call a function."""
        raise NotImplementedError

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        """Have the hub call a function later; what cancels that."""
        raise NotImplementedError


class _GeventInbox(Inbox):
    """The hub knows of its watcher only while somebody waits: it ends when it has none."""

    def __init__(self, hub: Any) -> None:
        super().__init__(hub)
        self._watcher = hub.loop.async_()

    def _open(self) -> None:
        self._watcher.start(self._empty)

    def _shut(self) -> None:
        self._watcher.stop()

    def _wake(self) -> None:
        with contextlib.suppress(Exception):  # the hub was destroyed: nobody waits any more
            self._watcher.send()

    def _soon(self, do: Callable[[], None]) -> None:
        self.hub.loop.run_callback(do)

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        timer = self.hub.loop.timer(seconds)
        timer.start(do)
        close: Callable[[], object] = timer.close
        return close


class _EventletInbox(Inbox):
    """The hub hears it as long as both are there, since it may be woken to log something."""

    def __init__(self, hub: Any) -> None:
        super().__init__(hub)
        self._waker = Waker()
        weakref.finalize(self, self._waker.close).atexit = False
        _eventlet_inboxes.add(self)
        hub.add(hub.READ, self._waker.fileno(), self._hear, _ignore, _ignore)
        logs.wake_with(self._waker.wake)

    def close(self) -> None:
        self._waker.close()

    def _hear(self, _: int) -> None:
        self._waker.drain()
        self._empty()
        if logs.anything_noted():
            sys.modules["eventlet"].spawn_n(logs.log_noted)

    def _wake(self) -> None:
        self._waker.wake()

    def _soon(self, do: Callable[[], None]) -> None:
        self.hub.schedule_call_global(0, do)

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        cancel: Callable[[], object] = self.hub.schedule_call_global(seconds, do).cancel
        return cancel


_eventlet_inboxes: weakref.WeakSet[_EventletInbox] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Later than the Nodes, which are closed with their help."""
    for inbox in list(_eventlet_inboxes):
        inbox.close()


def _ignore(*_: object) -> None:
    """What eventlet tells of an error or of a descriptor that was closed."""


# ---- the inbox of each thread -----------------------------------------------------------------

_here = native.local()
"""``inbox`` is that of the hub that a thread has, or had."""


def _inbox_of(hub: Any, kind: Callable[[Any], Inbox]) -> Inbox:
    inbox: Inbox | None = getattr(_here, "inbox", None)
    if inbox is None or inbox.hub is not hub:
        inbox = _here.inbox = kind(hub)
    return inbox


def _current() -> Any:
    return sys.modules["greenlet"].getcurrent()


def _after_fork_in_child() -> None:
    inbox: Inbox | None = getattr(_here, "inbox", None)
    if inbox is not None:
        del _here.inbox
        inbox.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
