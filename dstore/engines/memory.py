"""Keys and values in the memory of Global's process."""

from __future__ import annotations

from itertools import islice, takewhile

from sortedcontainers import SortedList

from dstore.config import MEMORY_LIMIT_DEFAULT
from dstore.errors import StoreFull
from dstore.messages import Key, Stored

ENTRY_OVERHEAD = 360
"""Bytes per entry beyond key and value: dictionary slot, objects, order. Measured, rounded up."""


def _size(key: Key, stored: Stored) -> int:
    return ENTRY_OVERHEAD + len(key) + stored.size


class MemoryEngine:
    """A dictionary, and its keys in order for scans. ``limit`` is in bytes."""

    def __init__(self, limit: int = MEMORY_LIMIT_DEFAULT) -> None:
        self.limit = limit
        self.size = 0
        self._values: dict[Key, Stored] = {}
        self._order: SortedList[Key] = SortedList()

    def __repr__(self) -> str:
        return f"<MemoryEngine keys={len(self)} bytes={self.size}/{self.limit}>"

    def __len__(self) -> int:
        return len(self._values)

    def read(self, key: Key) -> Stored | None:
        return self._values.get(key)

    def bind(self, key: Key, stored: Stored) -> None:
        size = self.size + _size(key, stored)
        if size > self.limit:
            raise StoreFull(
                f"Global holds {self.size:,} of {self.limit:,} bytes and the value does not fit; "
                "delete something, or start Global with a higher --memory-limit"
            )
        self.size = size
        self._values[key] = stored
        self._order.add(key)

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        self.size += stored.size - old.size
        self._values[key] = stored
        return True

    def remove(self, key: Key, token: bytes) -> bool:
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        del self._values[key]
        self._order.remove(key)
        self.size -= _size(key, old)
        return True

    def fits(self, key: Key, stored: Stored) -> bool:
        old = self._values.get(key)
        freed = _size(key, old) if old else 0
        return self.size - freed + _size(key, stored) <= self.limit

    def scan(self, prefix: str, after: Key, limit: int) -> list[Key]:
        start = max(prefix, after)
        found = self._order.irange(start, inclusive=(start != after, True))
        return list(islice(takewhile(lambda key: key.startswith(prefix), found), limit))

    def close(self) -> None:
        self._values.clear()
        self._order.clear()
        self.size = 0
