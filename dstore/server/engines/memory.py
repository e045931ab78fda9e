"""Keys and values in the memory of Global's process."""

from __future__ import annotations

from itertools import islice

from sortedcontainers import SortedList

from dstore.config import MEMORY_LIMIT_DEFAULT
from dstore.errors import StoreFull
from dstore.protocol.keys import from_order, in_order
from dstore.protocol.messages import Key, Large, Stored

ENTRY_OVERHEAD = 400
"""Bytes per entry beyond key, codec name and value: dictionary slot, objects, order. Measured."""
WIDE_KEY_OVERHEAD = 160
"""Bytes more for a key that is not ASCII, which stands in the order as a text of its own."""
LARGE_OVERHEAD = 600
"""Bytes more for a large value: what stands for it, and what keeps its bytes. Measured."""
AFTER_ALL = "\u0100"
"""Sorts after whatever may come in a text of :func:`~dstore.protocol.keys.in_order`."""
CHARACTER_BYTES = 4
"""The most that a character of a text takes in memory: one wide character makes all so wide."""


def key_size(key: Key, ordered: str) -> int:
    """What a key takes, in bytes, beyond what each entry does: at most, and not much less.

    It is made of the text alone, so that what a removal takes off the sum is what binding added.
    """
    if key.isascii():
        return len(key)  # which is in the order as well
    # Making the text for the order leaves a hole of its size in the heap (measured).
    return CHARACTER_BYTES * len(key) + 2 * len(ordered) + WIDE_KEY_OVERHEAD


def value_size(stored: Stored) -> int:
    """What a value takes, in bytes, and what has to do with it."""
    kept = LARGE_OVERHEAD if type(stored.body) is Large else 0
    return ENTRY_OVERHEAD + len(stored.codec) + stored.size + kept


class MemoryEngine:
    """A dictionary, and its keys in the order of their bytes. ``limit`` is in bytes."""

    def __init__(self, limit: int = MEMORY_LIMIT_DEFAULT) -> None:
        self.limit = limit
        self.size = 0
        self._values: dict[Key, Stored] = {}
        self._order: SortedList[str] = SortedList()  # of what in_order() makes of keys

    def __repr__(self) -> str:
        return f"<MemoryEngine keys={len(self)} bytes={self.size}/{self.limit}>"

    def __len__(self) -> int:
        return len(self._values)

    def read(self, key: Key) -> Stored | None:
        return self._values.get(key)

    def bind(self, key: Key, stored: Stored) -> None:
        ordered = in_order(key)
        size = self.size + key_size(key, ordered) + value_size(stored)
        if size > self.limit:
            raise StoreFull(
                f"Global holds {self.size:,} of {self.limit:,} bytes and the value does not fit; "
                "delete something, or start Global with a higher --memory-limit"
            )
        self.size = size
        self._values[key] = stored
        self._order.add(ordered)

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        self.size += value_size(stored) - value_size(old)
        self._values[key] = stored
        return True

    def remove(self, key: Key, token: bytes) -> bool:
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        del self._values[key]
        ordered = in_order(key)
        self._order.remove(ordered)
        self.size -= key_size(key, ordered) + value_size(old)
        return True

    def fits(self, key: Key, stored: Stored) -> bool:
        old = self._values.get(key)
        added = key_size(key, in_order(key)) if old is None else -value_size(old)
        return self.size + added + value_size(stored) <= self.limit

    def scan(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        begun, last = in_order(prefix), in_order(after)
        start, end = max(begun, last), begun + AFTER_ALL
        page = islice(self._order.irange(start, end, (start != last, False)), limit)
        return [each if each.isascii() else from_order(each) for each in page]

    def close(self) -> None:
        self._values.clear()
        self._order.clear()
        self.size = 0
