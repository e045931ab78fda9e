"""Waking a thread that waits in a poll, from any thread or signal handler."""

from __future__ import annotations

import contextlib

from dstore.runtime import native


class Waker:
    """A pair of connected sockets. Poll :meth:`fileno`; call :meth:`wake` from any thread."""

    def __init__(self) -> None:
        self._near, self._far = native.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def fileno(self) -> int:
        return self._near.fileno()

    def wake(self) -> None:
        """Make the poll return, or the next one if none is under way."""
        with contextlib.suppress(OSError):  # full: the poll returns anyway; closed: no thread polls
            self._far.send(b"\0")

    def drain(self) -> None:
        """Remove the wake-ups so far."""
        with contextlib.suppress(OSError):
            while self._near.recv(4096):
                pass

    def close(self) -> None:
        self._near.close()
        self._far.close()
