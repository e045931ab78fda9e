"""Keys and values in the memory of Global's process."""

from __future__ import annotations

from itertools import islice

from sortedcontainers import SortedList

from dstore.config import MEMORY_LIMIT_DEFAULT
from dstore.errors import StoreFull
from dstore.protocol.keys import from_order, in_order
from dstore.protocol.messages import Key, Large, Stored

ENTRY_OVERHEAD = 400
"""Bytes per key beyond key, codec name and value: dictionary slot, objects, order (measured)."""
WIDE_KEY_OVERHEAD = 160
"""Bytes more for a key that is not ASCII: the order has a text of its own for it."""
LARGE_OVERHEAD = 600
"""Bytes more for a large value: its Large, and what keeps its bytes (measured)."""
AFTER_ALL = "\u0100"
"""Sorts after each character that :func:`~dstore.protocol.keys.in_order` may return."""
CHARACTER_BYTES = 4
"""Bytes that a character of a text takes at most: one wide character makes all of them wide."""


def key_size(key: Key, ordered: str) -> int:
    """Return the bytes that a key takes beyond ``ENTRY_OVERHEAD``: an upper bound, and a close one.

    ``ordered`` is what the order has for the key. The result depends on the text alone, so a
    removal subtracts what binding has added.
    """
    if key.isascii():
        return len(key)  # the order has the same object
    # Making the text for the order leaves a hole of its size in the heap (measured).
    return CHARACTER_BYTES * len(key) + 2 * len(ordered) + WIDE_KEY_OVERHEAD


def value_size(stored: Stored) -> int:
    """Return the bytes that a value takes, with its overhead and its codec's name."""
    kept = LARGE_OVERHEAD if type(stored.body) is Large else 0
    return ENTRY_OVERHEAD + len(stored.codec) + stored.size + kept


class MemoryEngine:
    """The engine in memory: a dictionary, and its keys in the order of their bytes.

    See :class:`dstore.engines.Engine` for the methods. ``limit`` is in bytes. With a
    ``journal``, what is bound is on the disk already, and has been asked for with :meth:`fits`
    before: it is kept in any case.
    """

    def __init__(self, limit: int = MEMORY_LIMIT_DEFAULT, journal: bool = False) -> None:
        self.limit = limit
        self._checks = not journal
        self.size = 0
        self._values: dict[Key, Stored] = {}
        self._order: SortedList[str] = SortedList()  # of the texts that in_order() returns

    def __repr__(self) -> str:
        return f"<MemoryEngine keys={len(self)} bytes={self.size}/{self.limit}>"

    def __len__(self) -> int:
        return len(self._values)

    def read(self, key: Key) -> Stored | None:
        """Return the value bound to ``key``, or None."""
        return self._values.get(key)

    def bind(self, key: Key, stored: Stored) -> None:
        """Bind a value to a key that has none. Raises StoreFull."""
        ordered = in_order(key)
        size = self.size + key_size(key, ordered) + value_size(stored)
        if self._checks and size > self.limit:
            raise StoreFull(
                f"Global holds {self.size:,} of {self.limit:,} bytes and the value does not fit; "
                "delete something, or start Global with a higher --memory-limit"
            )
        self.size = size
        self._values[key] = stored
        self._order.add(ordered)

    def bind_all(self, values: dict[Key, Stored]) -> None:
        """Bind all keys of an engine that has none, without a look at the limit.

        That takes a fraction of the time of one :meth:`bind` for each key: the order is sorted
        once. The dictionary belongs to the engine from then on.
        """
        ordered = list(map(in_order, values))
        self._values = values
        self.size = sum(map(key_size, values, ordered)) + sum(map(value_size, values.values()))
        self._order = SortedList(ordered)

    def replace(self, key: Key, token: bytes, stored: Stored) -> bool:
        """Bind ``stored`` in place of the value with ``token``. Returns whether it was bound."""
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        self.size += value_size(stored) - value_size(old)
        self._values[key] = stored
        return True

    def remove(self, key: Key, token: bytes) -> bool:
        """Remove the value with ``token``. Returns whether it was bound."""
        old = self._values.get(key)
        if old is None or old.token != token:
            return False
        del self._values[key]
        ordered = in_order(key)
        self._order.remove(ordered)
        self.size -= key_size(key, ordered) + value_size(old)
        return True

    def fits(self, key: Key, stored: Stored) -> bool:
        """Whether a value fits, in place of the one that ``key`` may have."""
        old = self._values.get(key)
        added = key_size(key, in_order(key)) if old is None else -value_size(old)
        return self.size + added + value_size(stored) <= self.limit

    def scan(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        """Return at most ``limit`` keys with a prefix that come after ``after``."""
        begun, last = in_order(prefix), in_order(after)
        start, end = max(begun, last), begun + AFTER_ALL
        page = islice(self._order.irange(start, end, (start != last, False)), limit)
        return [each if each.isascii() else from_order(each) for each in page]

    def close(self) -> None:
        """Forget all keys. Idempotent."""
        self._values.clear()
        self._order.clear()
        self.size = 0
