"""Waking a thread that waits in a poll, from any thread or signal handler."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator


class Waker:
    """A pair of connected sockets: poll :meth:`fileno`, call :meth:`wake` from anywhere."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def fileno(self) -> int:
        return self._near.fileno()

    def wake(self) -> None:
        """Make the poll return, now or when it is next called."""
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody waits
            self._far.send(b"\0")

    @contextlib.contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """In the main thread, let any signal make the poll return, so that its handler runs.

        Without that a signal that comes just before the poll begins would wait for it to end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(former)

    def drain(self) -> None:
        """Forget the wake-ups so far."""
        with contextlib.suppress(OSError):
            while self._near.recv(4096):
                pass

    def close(self) -> None:
        self._near.close()
        self._far.close()
