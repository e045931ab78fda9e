"""The janitor: one thread that does slow work which no caller has to wait for."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Callable

from dstore.runtime import native
from dstore.runtime.logs import Log

log = Log("dstore.background")

BACKGROUND_BYTES = 16 << 20
"""Bytes of memory whose release is left to the janitor: releasing takes 0.2 s for each GiB."""


class Janitor:
    """Runs functions one after the other in a thread. Safe from any thread.

    The thread exists only while there is work. It is no daemon: Python waits for it before it
    exits. A function must not take a lock whose holder may wait for the janitor.
    """

    def __init__(self) -> None:
        self.forked()

    def forked(self) -> None:
        """Reset, in a forked child: the thread is not there, and the work is the parent's."""
        self._lock = native.RLock()
        self._work: deque[Callable[[], object]] = deque()
        self._thread: native.Thread | None = None
        self._at_work = False  # the thread will look once more for work, or is about to start

    def do(self, work: Callable[[], object]) -> None:
        """Call ``work`` soon: in the thread, or here if no thread can be started."""
        with self._lock:
            self._work.append(work)
            if self._at_work:
                return
            self._at_work = True
            thread = native.Thread(self._run, "dstore-janitor", daemon=False)
            self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # there can be no more threads, or Python is about to exit
            self._at_work = False
            self._run()

    @property
    def busy(self) -> bool:
        return bool(self._work) or self._at_work

    def wait(self, timeout: float | None = None) -> bool:
        """Return when the present work is done, or after ``timeout`` seconds.

        Returns whether there was any. Without a timeout the calling thread does part of the work.
        """
        thread, busy = self._thread, self.busy
        if timeout is None:
            self._run()
        if thread is not None and not thread.is_this():
            thread.join(timeout)
        return busy

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:
                log.exception("work in the background failed; the janitor goes on")

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            if self._work:
                return self._work.popleft()
            if self._thread is not None and self._thread.is_this():
                self._at_work = False
            return None


janitor = Janitor()
"""The janitor of this process."""

atexit.register(janitor.wait)  # in a patched process its thread is a daemon
native.in_forked_child(janitor.forked)
