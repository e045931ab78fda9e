"""The numbering of deletions, and Global's bounded record of the recent ones.

Deletions are numbered 1, 2, 3 … over one life of a Global. Whoever has applied all up to some
number asks for what came after; if the record no longer reaches back that far, it says so, and
the asker has to drop everything it holds.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from dstore.config import LOG_BYTES_MAX
from dstore.core.authority.budgets import text_bytes
from dstore.protocol.messages import Key

SLOT_BYTES = 10
"""Bytes of a place in the log, beside its key."""


class DeletionLog:
    """The last ``length`` deletions, or fewer if their keys are long.

    ``seq`` is the number of the newest, 0 before the first.
    """

    def __init__(self, length: int) -> None:
        self.seq = 0
        self.length = length
        self._keys: deque[Key] = deque()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<DeletionLog seq={self.seq} reaches={self.reach}>"

    @property
    def reach(self) -> int:
        """The lowest number after which every deletion is still known."""
        return self.seq - len(self._keys)

    def append(self, key: Key) -> int:
        """Number the deletion of ``key``."""
        self.seq += 1
        self._keys.append(key)
        self._bytes += SLOT_BYTES + text_bytes(key)
        while len(self._keys) > self.length or self._bytes > LOG_BYTES_MAX:
            self._bytes -= SLOT_BYTES + text_bytes(self._keys.popleft())
        return self.seq

    def since(self, applied: int) -> list[Key] | None:
        """The keys deleted in (``applied``, ``seq``], or None if that is no longer known."""
        if applied < self.reach:
            return None
        missed = self.seq - applied
        keys = list(islice(reversed(self._keys), missed))
        keys.reverse()
        return keys
