"""Which deletions the REPL does not announce: those that were typed into it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator

ECHO = 1.0
"""Seconds after a DEL within which the Node may still report it."""


class OwnDeletions:
    """Distinguishes the deletions of this REPL from those of other Nodes.

    The Node reports a deletion of this REPL once, if its Local held the key: mostly while DEL runs,
    and sometimes just after it, since another thread reports it.
    """

    def __init__(self, echo: float = ECHO) -> None:
        self._echo = echo
        self._until: dict[str | bytes, float] = {}  # the oldest first
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def deleting(self, key: str | bytes) -> Iterator[None]:
        """Mark a deletion as own while the block runs DEL. If that fails, the mark is removed."""
        with self._lock:
            self._forget_old()
            self._until[key] = math.inf
        try:
            yield
        except BaseException:
            self.take(key)
            raise
        with self._lock:
            if self._until.pop(key, None):
                self._until[key] = time.monotonic() + self._echo

    def take(self, key: str | bytes) -> bool:
        """Return whether a reported deletion is an own one, and remove its mark."""
        with self._lock:
            return self._until.pop(key, 0.0) > time.monotonic()

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._until and self._until[oldest := next(iter(self._until))] < now:
            del self._until[oldest]
