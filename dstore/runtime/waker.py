"""Waking a thread that waits in a poll, from any thread or signal handler."""

from __future__ import annotations

import contextlib

from dstore.runtime import native


class Waker:
    """A pair of connected sockets: poll :meth:`fileno`, call :meth:`wake` from anywhere."""

    def __init__(self) -> None:
        self._near, self._far = native.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def fileno(self) -> int:
        return self._near.fileno()

    def wake(self) -> None:
        """Make the poll return, now or when it is next called."""
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody waits
            self._far.send(b"\0")

    def drain(self) -> None:
        """Forget the wake-ups so far."""
        with contextlib.suppress(OSError):
            while self._near.recv(4096):
                pass

    def close(self) -> None:
        self._near.close()
        self._far.close()
