"""Threads for what would block an event loop: transfers of large values, files, hashing.

They are daemon threads and not those of a ThreadPoolExecutor. Python waits for the latter at its
exit before it calls any atexit handler, so an exit could hang behind a transfer that only the
atexit handler which closes the Node would end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dstore.client.hosts.core import closed, log
from dstore.errors import GlobalUnavailable
from dstore.runtime import clock, native
from dstore.transport.limits import no_threads

THREADS_MAX = 16
IDLE_MAX = 5.0
"""Seconds after which a thread that has nothing to do ends."""


class Helpers:
    """At most ``THREADS_MAX`` threads, started when they are needed. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = native.Lock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads: set[native.Thread] = set()
        self._idle: list[native.Lock] = []  # one of each idle thread, held until that is woken
        self._closed = False

    def submit(self, job: Callable[[], None]) -> None:
        """Have a function called. Raises NodeClosed, GlobalUnavailable if there is no thread."""
        with self._lock:
            if self._closed:
                raise closed()
            self._jobs.append(job)
            if self._idle:
                self._idle.pop().release()
            elif len(self._threads) < THREADS_MAX:
                self._start(job)

    def _start(self, job: Callable[[], None]) -> None:
        thread = native.Thread(lambda: self._serve(thread), "dstore-helper")
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                self._jobs.remove(job)
                raise GlobalUnavailable(no_threads(error)) from None
        else:
            self._threads.add(thread)

    def _serve(self, thread: native.Thread) -> None:
        while (job := self._next(thread)) is not None:
            try:
                job()
            except Exception:  # a defect of dstore
                log.exception("a helper thread of a Node failed and goes on")
            del job  # it may refer to much memory

    def _next(self, thread: native.Thread) -> Callable[[], None] | None:
        """Return the next job; None when this thread is to end."""
        waiting: native.Lock | None = None
        while True:
            with self._lock:
                if waiting in self._idle:
                    self._idle.remove(waiting)  # it was not woken: it has been idle for long enough
                    over = True
                else:
                    over = self._closed
                if self._jobs:
                    return self._jobs.popleft()
                if over:
                    self._threads.discard(thread)
                    return None
                waiting = native.Lock()
                waiting.acquire()
                self._idle.append(waiting)
            waiting.acquire(timeout=IDLE_MAX)

    def close(self) -> None:
        """Take no more jobs. The threads end when those taken are done."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().release()

    def join(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for the other threads; a job may take longer."""
        end = clock.now() + timeout
        with self._lock:
            threads = [each for each in self._threads if not each.is_this()]
        for thread in threads:
            thread.join(max(0.0, end - clock.now()))
