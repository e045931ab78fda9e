"""Threads in the background: they take no signals, and one of them tidies up."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator

from dstore.runtime import native
from dstore.runtime.logs import Log

log = Log("dstore.background")

MUCH = 16 << 20
"""To give back so many bytes takes a while (0.2 s for each GiB), and is left to the janitor."""


@contextlib.contextmanager
def signals_left_to_this_thread() -> Iterator[None]:
    """Threads that are started in this block, ZeroMQ's among them, take no signals.

    A signal is to interrupt what the main thread waits for; taken by another thread it would be
    noticed only when that wait has ended. Threads inherit the mask of the one that starts them,
    so that there is no moment at which they could take one. What comes meanwhile comes afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:  # from here on, since the handler of an earlier signal may run within the next call
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class Janitor:
    """Does what takes long and nobody waits for, one thing after the other, in a thread.

    The thread is there as long as there is something to do. It is no daemon: Python waits for it
    before it exits. Safe from any thread. Work must not take a lock that somebody may hold who
    waits for the janitor.
    """

    def __init__(self) -> None:
        self.forked()

    def forked(self) -> None:
        """In the child: there is no such thread, and nothing to do."""
        self._lock = native.RLock()
        self._work: deque[Callable[[], object]] = deque()
        self._thread: native.Thread | None = None
        self._at_work = False  # the thread will look once more for work, or is not yet started

    def __repr__(self) -> str:
        return f"<Janitor {len(self._work)} to do>"

    def do(self, work: Callable[[], object]) -> None:
        """Have it done soon."""
        with self._lock:
            self._work.append(work)
            if self._at_work:
                return
            self._at_work = True
            thread = native.Thread(self._run, "dstore-janitor", daemon=False)
            self._thread = thread
        try:
            with signals_left_to_this_thread():
                thread.start()
        except RuntimeError:  # there can be no more threads, or Python is about to exit
            self._at_work = False
            self._run()

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._work) or self._at_work

    def wait(self, timeout: float | None = None) -> bool:
        """Return when all is done that there is to do now. Whether there was anything.

        Or after ``timeout`` seconds; without that, the calling thread lends a hand.
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
                log.exception("the janitor goes on")

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            if self._work:
                return self._work.popleft()
            if self._thread is not None and self._thread.is_this():
                self._at_work = False
            return None


janitor = Janitor()
"""The one of this process."""

atexit.register(janitor.wait)  # in a patched process its thread is a daemon

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=janitor.forked)
