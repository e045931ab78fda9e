"""The bounded cache of a Local, with SIEVE eviction.

SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024): entries stand in the order of their
insertion. A hit only sets the entry's ``visited`` bit, so it takes no lock and moves nothing.
To evict, a hand walks from the oldest entry to the newest and on from the oldest again; it
clears the bits it finds set, and evicts the first entry without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dstore.protocol.messages import Key, Stored

ENTRY_OVERHEAD = 360
"""Bytes that an entry takes beyond its key and its value, counted against the limit: the Entry, its
size, its place in the dictionary, the Stored with its token, and the headers of these objects.
Measured with 20,000 entries: 390, and 250 once the value is kept decoded.
"""
SHARED_OVERHEAD = 1300
"""Bytes of a value in shared memory, in place of its length: the mapping and the views of it."""
TEXT = "text"
"""The codec of values that may take more memory decoded than encoded."""
_EMPTY_KEY_BYTES = "".__sizeof__()
_CONTINUED = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that do not begin a character
_BELOW_WIDE, _BELOW_ASTRAL = bytes(range(0xC4)), bytes(range(0xF0))
SHARED_MAX = 8_192
"""Entries in shared memory: each is a mapping, and the mappings of a process are limited."""
SEEN = 2
"""A ``visited`` bit that is set and that the check of shared files has seen already."""


class MappedBody(NamedTuple):
    """The bytes of a large value, read-only.

    ``shared``: they are in a file that all processes of the host share, and take no private memory.
    """

    view: memoryview
    shared: bool


class Entry:
    """One cached value.

    ``value`` is the object that hits return, if it is immutable; before the first hit, and always
    if it is mutable, it is the Stored, which each hit decodes. One slot serves both, so that a
    reader without a lock cannot see half of a change. ``size`` is in bytes of this process, and
    counts the larger of the two; ``shared`` is the token of a value in shared memory. A hit sets
    ``visited`` to True. ``sound`` is set once the value has been decoded, so that it is checked
    only once.
    """

    __slots__ = ("key", "newer", "older", "shared", "size", "sound", "value", "visited")

    def __init__(self, key: Key, stored: Stored, shared: bool = False) -> None:
        self.key = key
        self.value: object = stored
        self.shared = stored.token if shared else None
        body = stored.body
        if shared:
            value_bytes = SHARED_OVERHEAD
        elif type(body) is bytes and stored.codec != TEXT:
            value_bytes = len(body)  # as in _value_bytes, without the call
        else:
            value_bytes = _value_bytes(stored)
        # The bytes of the key beyond those of an empty text:
        key_bytes = len(key) if key.isascii() else key.__sizeof__() - _EMPTY_KEY_BYTES
        self.size = ENTRY_OVERHEAD + value_bytes + key_bytes
        self.sound = False
        self.visited: bool | int = False
        self.newer: Entry | None = None
        self.older: Entry | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.key!r} visited={self.visited}>"


def _value_bytes(stored: Stored) -> int:
    """Return the bytes of a value: encoded, or as decoded text if that is more.

    One wide character makes all of a text wide.
    """
    body = stored.body
    if stored.codec != TEXT or type(body) is not bytes or body.isascii():
        return stored.size
    characters = len(body.translate(None, _CONTINUED))
    if body.translate(None, _BELOW_ASTRAL):
        return 4 * characters
    return max(len(body), 2 * characters) if body.translate(None, _BELOW_WIDE) else len(body)


class Cache:
    """Entries by key, at most ``limit`` bytes of them; ``shared`` has those in shared memory.

    ``entries`` may be read without a lock; everything else is for the owner of the state.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.evictions = 0
        self.entries: dict[Key, Entry] = {}
        self.shared: dict[bytes, Entry] = {}
        self._newest: Entry | None = None
        self._oldest: Entry | None = None
        self._hand: Entry | None = None

    def __repr__(self) -> str:
        return f"<Cache entries={len(self.entries)} bytes={self.size}/{self.limit}>"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate from the oldest entry to the newest."""
        entry = self._oldest
        while entry is not None:
            yield entry
            entry = entry.newer

    def insert(self, key: Key, stored: Stored, *, shared: bool = False) -> Entry | None:
        """Store a value, in place of the key's entry. Returns None if it is above the limit."""
        if key in self.entries:
            self.discard(key)
        entry = Entry(key, stored, shared)
        if entry.size > self.limit:
            return None
        while self.size + entry.size > self.limit:
            self._evict()
        if entry.shared is not None and len(self.shared) >= SHARED_MAX:
            self._evict_shared()
        entry.older = self._newest
        if self._newest is None:
            self._oldest = entry
        else:
            self._newest.newer = entry
        self._newest = entry
        self.size += entry.size
        if entry.shared is not None:
            self.shared[entry.shared] = entry
        self.entries[key] = entry
        return entry

    def discard(self, key: Key) -> Entry | None:
        """Remove a key's entry. Returns the entry, or None if the key is not cached."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            self._unlink(entry)
        return entry

    def clear(self) -> None:
        """Remove all entries. A reader without a lock sees the same dictionary, emptied."""
        for entry in self.entries.values():
            entry.older = entry.newer = None  # so that no cycle waits for the garbage collector
        self.entries.clear()
        self.shared.clear()
        self._newest = self._oldest = self._hand = None
        self.size = 0

    def renew(self) -> dict[Key, Entry]:
        """Remove all entries and start a new dictionary. Returns the new one."""
        self.clear()
        self.entries = {}
        return self.entries

    def _unlink(self, entry: Entry) -> None:
        if entry.shared is not None and self.shared.get(entry.shared) is entry:
            del self.shared[entry.shared]
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

    def _evict_shared(self) -> None:
        """Remove the oldest shared entry that was not read since it was last the oldest (CLOCK)."""
        entry = next(iter(self.shared.values()))
        while entry.visited:
            entry.visited = False
            assert entry.shared is not None
            self.shared[entry.shared] = self.shared.pop(entry.shared)
            entry = next(iter(self.shared.values()))
        self.discard(entry.key)
        self.evictions += 1
