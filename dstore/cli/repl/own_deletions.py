"""Which deletions the REPL does not announce: those that were typed into it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator

ECHO = 1.0
"""Seconds after a DEL within which the Node may still tell of it."""


class OwnDeletions:
    """Tells the deletions that were asked for here from those of other Nodes.

    The Node tells of a deletion of ours once, if this Local held the key: mostly while DEL runs,
    and sometimes, since another thread tells, just after.
    """

    def __init__(self, echo: float = ECHO) -> None:
        self._echo = echo
        self._until: dict[str | bytes, float] = {}  # the oldest first
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def deleting(self, key: str | bytes) -> Iterator[None]:
        """Around a DEL. If that fails, whoever deletes the key afterwards is somebody else."""
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
        """Whether the deletion that the Node tells of is ours; the next one is not."""
        with self._lock:
            return self._until.pop(key, 0.0) > time.monotonic()

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._until and self._until[oldest := next(iter(self._until))] < now:
            del self._until[oldest]
