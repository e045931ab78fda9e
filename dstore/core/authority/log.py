"""The invalidation log: the numbering of invalidations and a bounded record of the recent ones.

Invalidations are numbered 1, 2, 3 … within one epoch. A Local that has applied all of them up to
some number asks for the later ones. If the log no longer reaches back that far, the Local has to
drop its whole cache.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from dstore.config import LOG_BYTES_MAX
from dstore.core.authority.budgets import text_bytes
from dstore.protocol.messages import Key

SLOT_BYTES = 10
"""Bytes of a place in the log, beside its key."""


class InvalidationLog:
    """The keys of the last ``length`` invalidations, or of fewer if the keys are long.

    ``seq`` is the number of the newest invalidation, 0 before the first.
    """

    def __init__(self, length: int) -> None:
        self.seq = 0
        self.length = length
        self._keys: deque[Key] = deque()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<InvalidationLog seq={self.seq} reaches={self.reach}>"

    @property
    def reach(self) -> int:
        """The lowest number after which every invalidation is still in the log."""
        return self.seq - len(self._keys)

    def append(self, key: Key) -> int:
        """Add an invalidation of ``key``. Returns its number."""
        self.seq += 1
        self._keys.append(key)
        self._bytes += SLOT_BYTES + text_bytes(key)
        while len(self._keys) > self.length or self._bytes > LOG_BYTES_MAX:
            self._bytes -= SLOT_BYTES + text_bytes(self._keys.popleft())
        return self.seq

    def since(self, applied: int) -> list[Key] | None:
        """Return the keys of the invalidations in (``applied``, ``seq``].

        Returns None if the log no longer has all of them.
        """
        if applied < self.reach:
            return None
        missed = self.seq - applied
        keys = list(islice(reversed(self._keys), missed))
        keys.reverse()
        return keys
