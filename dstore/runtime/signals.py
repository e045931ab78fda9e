"""Which threads take the signals of the process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals in this thread for a while; threads started meanwhile never take any.

    That holds for the threads of ZeroMQ, too. A signal has to interrupt what the main thread waits
    for; taken by another thread it would be noticed only when that wait has ended. Threads inherit
    the mask of the one that starts them, so there is no moment at which they could take a signal.
    Signals that arrive meanwhile are delivered afterwards.
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
