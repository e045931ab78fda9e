"""Threads for what would block an event loop: transfers of large values, files, hashing.

They are daemon threads of our own, and not those of a ThreadPoolExecutor: Python waits for the
latter at its exit before it calls any atexit handler, so that an exit could hang behind a transfer
that only such a handler, which closes the Node, would end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from dstore import clock
from dstore.background import signals_left_to_this_thread
from dstore.errors import GlobalUnavailable, NodeClosed
from dstore.transport.limits import no_threads

log = logging.getLogger("dstore.local")

THREADS_MAX = 16
IDLE_MAX = 5.0
"""Seconds after which a thread that has nothing to do ends."""


class Helpers:
    """At most ``THREADS_MAX`` threads, started when they are needed. Safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Helpers threads={len(self._threads)} idle={self._idle} jobs={len(self._jobs)}>"

    def submit(self, job: Callable[[], None]) -> None:
        """Have a function called, in its turn. Raises NodeClosed, and GlobalUnavailable if the
        system gives no thread.
        """
        with self._changed:
            if self._closed:
                raise NodeClosed("the Node is closed")
            self._jobs.append(job)
            if len(self._jobs) > self._idle and len(self._threads) < THREADS_MAX:
                self._start(job)
            self._changed.notify()

    def _start(self, job: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._serve, name="dstore-helper", daemon=True)
        try:
            with signals_left_to_this_thread():
                thread.start()
        except RuntimeError as error:
            if not self._threads:
                self._jobs.remove(job)
                raise GlobalUnavailable(no_threads(error)) from None
        else:
            self._threads.add(thread)

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except Exception:  # a bug of ours
                log.exception("a helper thread of a Node failed and goes on")
            del job  # it may have much in its hands

    def _next(self) -> Callable[[], None] | None:
        """The next job; None when this thread is to end."""
        with self._changed:
            while not self._jobs:
                told = False
                if not self._closed:
                    self._idle += 1
                    told = self._changed.wait(IDLE_MAX)
                    self._idle -= 1
                if not told and not self._jobs:
                    self._threads.discard(threading.current_thread())
                    return None
            return self._jobs.popleft()

    def close(self) -> None:
        """Take no more. What has been taken is done, and then the threads end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the threads, but for this one, at most ``timeout`` seconds.

        What cannot be interrupted may take longer, and ends by itself.
        """
        end = clock.now() + timeout
        with self._changed:
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join(max(0.0, end - clock.now()))
