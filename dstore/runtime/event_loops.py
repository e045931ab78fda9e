"""Tasks that wait for other threads: what asyncio and trio do differently.

:func:`task_event` makes an event that a task awaits and another thread sets. If the task is
cancelled meanwhile, its ``await`` raises the cancellation of its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol

from dstore.runtime import native


class TaskEvent(Protocol):
    """An event that any thread may set once, and one task awaits.

    Setting it does nothing when the event loop of the task is closed.
    """

    def set(self) -> None: ...
    def __await__(self) -> Generator[Any, Any, None]: ...


def task_event() -> TaskEvent:
    """Return an event for the task that runs here. Raises RuntimeError outside a task."""
    trio = sys.modules.get("trio")
    if trio is not None and _runs(trio):
        return _TrioEvent(trio)
    return _AsyncioEvent()


class ThreadTaskEvent:
    """A :class:`TaskEvent` for a coroutine that a thread runs by itself, and blocks where it waits.

    ``greenlets.finish`` runs such a coroutine.
    """

    def __init__(self) -> None:
        self._event = native.ThreadEvent()
        self.set = self._event.set

    def __await__(self) -> Generator[Any, Any, None]:
        self._event.wait()
        yield from ()


async def in_thread(
    do: Callable[[], None], new_event: Callable[[], TaskEvent] = task_event
) -> None:
    """Call a function in a thread of its own, or here if no thread can be started.

    If the task is cancelled, the thread goes on. ``new_event`` makes the event that is awaited, for
    callers that are not tasks.
    """
    done = new_event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:
            raised.append(error)
        done.set()

    thread = native.Thread(run, "dstore-call")
    try:
        thread.start()
    except RuntimeError:  # there can be no more threads, or Python is about to exit
        run()
    await done
    if thread.ident is not None:
        thread.join()
    if raised:
        raise raised.pop()


# ---- asyncio ----------------------------------------------------------------------------------


class _LoopInbox:
    """The futures that other threads have completed; one call of the loop resolves all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._completed: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    def put(self, future: asyncio.Future[None]) -> None:
        """Complete a future. From any thread."""
        self._completed.append(future)
        if not self._scheduled:
            self._scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._resolve)
            except RuntimeError:  # the loop is closed: no task waits any more
                self._scheduled = False
                self._completed.clear()

    def _resolve(self) -> None:
        self._scheduled = False  # first: what is put from now on is resolved below, or scheduled
        while self._completed:
            future = self._completed.popleft()
            if not future.done():
                future.set_result(None)


_here = native.local()
"""``inbox`` is that of the loop that runs, or last ran, in a thread."""


class _AsyncioEvent:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        inbox = getattr(_here, "inbox", None)
        if inbox is None or inbox.loop is not loop:
            inbox = _here.inbox = _LoopInbox(loop)
        self._inbox: _LoopInbox = inbox
        self._future = loop.create_future()

    def set(self) -> None:
        self._inbox.put(self._future)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._future.__await__()


# ---- trio, which need not be installed --------------------------------------------------------


def _runs(trio: Any) -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


class _TrioEvent:
    def __init__(self, trio: Any) -> None:
        self._run_finished = trio.RunFinishedError
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def set(self) -> None:
        with contextlib.suppress(self._run_finished):  # no task waits any more
            self._token.run_sync_soon(self._event.set)

    def __await__(self) -> Generator[Any, Any, None]:
        wait: Generator[Any, Any, None] = self._event.wait().__await__()
        return wait
