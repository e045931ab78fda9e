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
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dstore.runtime import event_loops as loops
from dstore.runtime import logs, native
from dstore.runtime.hub_inbox import HubInbox, current_greenlet
from dstore.runtime.waker import Waker

T = TypeVar("T")


def here() -> HubInbox | None:
    """The inbox of the greenlets that would stop running if this one blocked.

    None if there are none, so that blocking is right.
    """
    gevent = sys.modules.get("gevent._hub_local")
    if gevent is not None:
        hub = gevent.get_hub_if_exists()
        if hub is not None:
            return None if current_greenlet() is hub else _inbox_of(hub, _GeventInbox)
    eventlet = sys.modules.get("eventlet.hubs")
    if eventlet is not None:
        hub = getattr(eventlet._threadlocal, "hub", None)
        if hub is not None:
            return None if current_greenlet() is hub.greenlet else _inbox_of(hub, _EventletInbox)
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
        super().__init__(hub)
        self._watcher = hub.loop.async_()

    def _open(self) -> None:
        self._watcher.start(self._resume_set)

    def _shut(self) -> None:
        self._watcher.stop()

    def _wake(self) -> None:
        with contextlib.suppress(Exception):  # the hub was destroyed: no greenlet waits any more
            self._watcher.send()

    def _soon(self, do: Callable[[], None]) -> None:
        self.hub.loop.run_callback(do)

    def _after(self, seconds: float, do: Callable[[], None]) -> Callable[[], object]:
        timer = self.hub.loop.timer(seconds)
        timer.start(do)
        close: Callable[[], object] = timer.close
        return close


# ---- eventlet ---------------------------------------------------------------------------------


class _EventletInbox(HubInbox):
    """The hub listens to the waker at all times, since there may be lines to log."""

    def __init__(self, hub: Any) -> None:
        super().__init__(hub)
        self._waker = Waker()
        weakref.finalize(self, self._waker.close).atexit = False
        _eventlet_inboxes.add(self)
        hub.add(hub.READ, self._waker.fileno(), self._woken, _ignore, _ignore)
        logs.wake_with(self._waker.wake)

    def close(self) -> None:
        self._waker.close()

    def _woken(self, _: int) -> None:
        self._waker.drain()
        self._resume_set()
        if logs.has_deferred():
            sys.modules["eventlet"].spawn_n(logs.log_deferred)

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


def _after_fork_in_child() -> None:
    inbox: HubInbox | None = getattr(_here, "inbox", None)
    if inbox is not None:
        del _here.inbox
        inbox.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
