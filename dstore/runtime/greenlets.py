"""Greenlets that wait for other threads: what gevent and eventlet do differently.

A greenlet that has to wait for Global lets the other greenlets of its thread run. It carries out a
command in a coroutine, as a task of an event loop does (``LoopHost.conduct`` of the client).
The coroutine awaits only events of :class:`HubInbox`, which wait by themselves in the hub of the
thread, so that :func:`finish` runs it in one go. No thread is needed for each greenlet that waits:
a thousand may wait for a key, and another one sets it.

What counts is whether the calling thread has a hub, and not what has been patched. A thread without
a hub (the native threads of gevent's and eventlet's pools, and those of dstore) has no other
greenlets, and blocks; so does the hub itself, as in a signal handler.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

from dstore.errors import NodeClosed
from dstore.runtime import event_loops as loops
from dstore.runtime import logs, native
from dstore.runtime.native import Waker


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

    def __init__(self, hub: Any, soon: Callable[[Callable[[], None]], object]) -> None:
        self.hub = hub
        self._soon = soon  # has the hub call a function; in its thread
        self._pid = os.getpid()
        self._set: deque[GreenletEvent] = deque()
        self._waiting: set[GreenletEvent] = set()

    def new_event(self) -> GreenletEvent:
        return GreenletEvent(self)

    def put(self, event: GreenletEvent) -> None:
        """Have the hub resume the greenlet that waits for this event. From any thread."""
        self._set.append(event)
        self._wake()

    def wait(self, event: GreenletEvent, timeout: float | None) -> bool:
        if not self._waiting:
            self._open()
        self._waiting.add(event)
        cancel = None
        try:
            if timeout is not None:
                cancel = self._after(timeout, event.expire)
            event.greenlet = _current_greenlet()
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

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        """Have the hub call a function later. Returns a function that cancels this."""
        raise NotImplementedError


def _current_greenlet() -> Any:
    return sys.modules["greenlet"].getcurrent()


T = TypeVar("T")


def here() -> HubInbox | None:
    """Return the inbox of the greenlets that would stop running if this one blocked.

    Returns None if there are none; then the caller may block.
    """
    gevent = sys.modules.get("gevent._hub_local")
    if gevent is not None:
        hub = gevent.get_hub_if_exists()
        if hub is not None:
            return None if _current_greenlet() is hub else _inbox_of(hub, _GeventInbox)
    eventlet = sys.modules.get("eventlet.hubs")
    if eventlet is not None:
        hub = getattr(eventlet._threadlocal, "hub", None)
        if hub is not None:
            return None if _current_greenlet() is hub.greenlet else _inbox_of(hub, _EventletInbox)
    return None


def finish(task: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits only events of :class:`HubInbox`. Returns its result."""
    try:
        task.send(None)
    except StopIteration as stop:
        done: T = stop.value
        return done
    raise RuntimeError("the coroutine awaits something that a greenlet cannot wait for")


def blocking(do: Callable[[], None]) -> None:
    """Call a function that blocks: in a greenlet by a thread of its own, while others run."""
    inbox = here()
    if inbox is None:
        do()
    else:
        finish(loops.in_thread(do, inbox.new_event))


# ---- gevent -----------------------------------------------------------------------------------


class _GeventInbox(HubInbox):
    """The watcher is active only while a greenlet waits: the hub ends when it has none."""

    def __init__(self, hub: Any) -> None:
        super().__init__(hub, hub.loop.run_callback)
        self._watcher = hub.loop.async_()

    def _open(self) -> None:
        self._watcher.start(self._resume_set)

    def _shut(self) -> None:
        self._watcher.stop()

    def _wake(self) -> None:
        with contextlib.suppress(Exception):  # the hub was destroyed: no greenlet waits any more
            self._watcher.send()

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        timer = self.hub.loop.timer(seconds)
        timer.start(do)
        close: Callable[[], object] = timer.close
        return close


# ---- eventlet ---------------------------------------------------------------------------------


class _EventletInbox(HubInbox):
    """The hub listens to the waker at all times, since there may be lines to log."""

    def __init__(self, hub: Any) -> None:
        super().__init__(hub, partial(hub.schedule_call_global, 0))
        self._waker = Waker()
        self.close = weakref.finalize(self, self._waker.close)
        self.close.atexit = False
        _eventlet_inboxes.add(self)
        hub.add(hub.READ, self._waker.fileno(), self._woken, _ignore, _ignore)
        logs.wake_with(self._waker.wake)

    def _woken(self, _: int) -> None:
        self._waker.drain()
        self._resume_set()
        if logs.deferred:
            sys.modules["eventlet"].spawn_n(logs.log_deferred)

    def _wake(self) -> None:
        self._waker.wake()

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        cancel: Callable[[], object] = self.hub.schedule_call_global(seconds, do).cancel
        return cancel


_eventlet_inboxes: weakref.WeakSet[_EventletInbox] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Close the wakers, after the Nodes, which need them to close."""
    for inbox in list(_eventlet_inboxes):
        inbox.close()


def _ignore(*_: object) -> None:
    """Called by eventlet after an error, or when the descriptor was closed."""


# ---- the inbox of each thread -----------------------------------------------------------------

_here = native.local()
"""``inbox`` is that of the hub that a thread has, or had."""


def _inbox_of(hub: Any, kind: Callable[[Any], HubInbox]) -> HubInbox:
    inbox: HubInbox | None = getattr(_here, "inbox", None)
    if inbox is None or inbox.hub is not hub:
        inbox = _here.inbox = kind(hub)
    return inbox


@native.in_forked_child
def _after_fork_in_child() -> None:
    inbox: HubInbox | None = getattr(_here, "inbox", None)
    if inbox is not None:
        del _here.inbox
        inbox.forked()
