"""The bounded cache of a Local, with SIEVE eviction.

SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024): entries stand in the order of their
insertion. A hit only sets the entry's ``visited`` bit, so it takes no lock and moves nothing.
To evict, a hand walks from the oldest entry to the newest and on from the oldest again; it
clears the bits it finds set, and the first entry without one goes.
"""

from __future__ import annotations

from collections.abc import Iterator

from dstore.messages import Key, Stored

ENTRY_OVERHEAD = 200
"""Bytes an entry takes beyond its key and its value; counted against the limit."""


class Entry:
    """One cached value.

    ``value`` is the object that hits hand out, if it is immutable; until the first hit, and for
    ever if it is mutable, it is the Stored that each hit decodes afresh. One slot serves both, so
    that a reader without a lock cannot see one half of a change. ``size`` is in bytes.
    """

    __slots__ = ("key", "newer", "older", "size", "value", "visited")

    def __init__(self, key: Key, stored: Stored) -> None:
        self.key = key
        self.value: object = stored
        self.size = ENTRY_OVERHEAD + len(key) + len(stored.body)
        self.visited = False
        self.newer: Entry | None = None
        self.older: Entry | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.key!r} visited={self.visited}>"


class Cache:
    """Entries by key, at most ``limit`` bytes of them.

    ``entries`` may be read without a lock; everything else is for the owner of the state.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.evictions = 0
        self.entries: dict[Key, Entry] = {}
        self._newest: Entry | None = None
        self._oldest: Entry | None = None
        self._hand: Entry | None = None

    def __repr__(self) -> str:
        return f"<Cache entries={len(self.entries)} bytes={self.size}/{self.limit}>"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        """From the oldest to the newest."""
        entry = self._oldest
        while entry is not None:
            yield entry
            entry = entry.newer

    def insert(self, key: Key, stored: Stored) -> Entry | None:
        """Hold a value, in place of an older one of the key. None if it is above the limit."""
        self.discard(key)
        entry = Entry(key, stored)
        if entry.size > self.limit:
            return None
        while self.size + entry.size > self.limit:
            self._evict()
        entry.older = self._newest
        if self._newest is None:
            self._oldest = entry
        else:
            self._newest.newer = entry
        self._newest = entry
        self.size += entry.size
        self.entries[key] = entry
        return entry

    def discard(self, key: Key) -> bool:
        """Drop the entry of a key. Whether there was one."""
        entry = self.entries.pop(key, None)
        if entry is None:
            return False
        self._unlink(entry)
        return True

    def clear(self) -> None:
        """Drop everything.

        The dictionary stays the same object and is emptied, so that a reader without a lock that
        has it in hand finds nothing any more.
        """
        for entry in self.entries.values():
            entry.older = entry.newer = None  # so that no ring waits for the garbage collector
        self.entries.clear()
        self._newest = self._oldest = self._hand = None
        self.size = 0

    def renew(self) -> dict[Key, Entry]:
        """Go on, empty, with another dictionary, which is returned."""
        self.clear()
        self.entries = {}
        return self.entries

    def _unlink(self, entry: Entry) -> None:
        if self._hand is entry:
            self._hand = entry.newer
        if entry.older is None:
            self._oldest = entry.newer
        else:
            entry.older.newer = entry.newer
        if entry.newer is None:
            self._newest = entry.older
        else:
            entry.newer.older = entry.older
        self.size -= entry.size
        entry.older = entry.newer = None

    def _evict(self) -> None:
        entry = self._hand or self._oldest
        while entry is not None and entry.visited:
            entry.visited = False
            entry = entry.newer or self._oldest
        assert entry is not None, "an empty cache has nothing to evict"
        self._hand = entry
        self.discard(entry.key)
        self.evictions += 1
