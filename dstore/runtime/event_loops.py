"""Tasks that wait for other threads: what asyncio and trio do differently.

:func:`signal` gives what a task waits for and another thread sets. If the task is cancelled
meanwhile, its ``await`` raises what the loop has for that.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol

from dstore.runtime import native
from dstore.runtime.background import signals_left_to_this_thread


class Signal(Protocol):
    """Set once, from any thread, and awaited by one task. A loop that is closed is never told."""

    def set(self) -> None: ...
    def __await__(self) -> Generator[Any, Any, None]: ...


def signal() -> Signal:
    """A signal for the task that runs here. Raises RuntimeError where none does."""
    trio = sys.modules.get("trio")
    if trio is not None and _runs(trio):
        return _TrioSignal(trio)
    return _AsyncioSignal()


async def in_thread(do: Callable[[], None], new_signal: Callable[[], Signal] = signal) -> None:
    """Call a function in a thread of its own. If the task is cancelled, the thread goes on.

    ``new_signal`` is for those who are no tasks. Raises RuntimeError if no thread can be started.
    """
    done = new_signal()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:
            raised.append(error)
        done.set()

    thread = native.Thread(run, "dstore-call")
    try:
        with signals_left_to_this_thread():
            thread.start()
    except RuntimeError:  # there can be no more threads: better here than not at all
        run()
    await done
    if thread.ident is not None:
        thread.join()
    if raised:
        raise raised.pop()


# ---- asyncio ----------------------------------------------------------------------------------


class _Inbox:
    """The signals that are set for one event loop; it is woken once for all that are there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._set: deque[asyncio.Future[None]] = deque()
        self._told = False

    def put(self, future: asyncio.Future[None]) -> None:
        """In any thread."""
        self._set.append(future)
        if not self._told:
            self._told = True
            try:
                self.loop.call_soon_threadsafe(self._empty)
            except RuntimeError:  # it is closed: nobody waits any more
                self._told = False
                self._set.clear()

    def _empty(self) -> None:
        self._told = False  # first: what comes from now on is taken below, or tells again
        while self._set:
            future = self._set.popleft()
            if not future.done():
                future.set_result(None)


_here = native.local()
"""``inbox`` is that of the loop that runs, or last ran, in a thread."""


class _AsyncioSignal:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        inbox = getattr(_here, "inbox", None)
        if inbox is None or inbox.loop is not loop:
            inbox = _here.inbox = _Inbox(loop)
        self._inbox: _Inbox = inbox
        self._future = loop.create_future()

    def set(self) -> None:
        self._inbox.put(self._future)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._future.__await__()


# ---- trio, which need not be there ------------------------------------------------------------


def _runs(trio: Any) -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


class _TrioSignal:
    def __init__(self, trio: Any) -> None:
        self._over = trio.RunFinishedError
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def set(self) -> None:
        try:
            self._token.run_sync_soon(self._event.set)
        except self._over:  # nobody waits any more
            pass

    def __await__(self) -> Generator[Any, Any, None]:
        wait: Generator[Any, Any, None] = self._event.wait().__await__()
        return wait
