"""The bounded cache of a Local, with SIEVE eviction.

SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024): entries stand in the order of their
insertion. A hit only sets the entry's ``visited`` bit, so it takes no lock and moves nothing.
To evict, a hand walks from the oldest entry to the newest and on from the oldest again; it
clears the bits it finds set, and evicts the first entry without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from dstore.compiled import native
from dstore.core.local.membership import Entry, Membership
from dstore.protocol.messages import TOKEN_BYTES, GetReply, Key, Large, Stored

ENTRY_OVERHEAD = 300 if native is None else 230
"""Bytes that an entry takes beyond the lengths of its key and its value, counted against the limit:
the Entry with its numbers, its place in the dictionary, the headers of key and value. Measured with
20,000 to 100,000 entries: 290 to 310, and 215 to 235 with the compiled Entry.
"""
STORED_OVERHEAD = 120
"""Bytes of the Stored and its token, where the value is kept encoded."""
SHARED_OVERHEAD = 1300
"""Bytes of a value in shared memory, in place of its length: the mapping and the views of it."""
BYTES = "bytes"
"""The codec of values that are kept as they come."""
_EMPTY_TEXT_BYTES = "".__sizeof__()
NONE_KEPT: Mapping[str, Callable[[bytes], object]] = {}
DIGEST_OVERHEAD = 170
"""Bytes of the digest of a large value, by which the value can be offered to Global."""
INDEX_OVERHEAD = 80
"""Bytes of the place of an entry in an index."""
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


class FormerLarge(NamedTuple):
    """What is left of a large value when its session has ended.

    ``token`` names the file that has its bytes. ``view`` has the bytes if they are in memory of
    this process; else they are in shared memory.
    """

    token: bytes
    large: Large
    view: memoryview | None


Value: TypeAlias = tuple[Key, str, bytes | FormerLarge]
"""A key, and codec and body of its value."""
Kept: TypeAlias = Mapping[str, Callable[[bytes], object]]
"""By the name of a codec, a function that decodes a value, for the entry to keep.

It returns NotImplemented if the one object may not serve every reader, or the bytes are damaged:
then the entry keeps the value encoded. It must be quick and must not raise.
"""

Encode: TypeAlias = Callable[[object], tuple[str, bytes]]


def _no_encode(value: object) -> tuple[str, bytes]:
    raise TypeError(f"no value is kept decoded, and {type(value).__name__} is")


NONE_DECODED: Encode = _no_encode


def _text_bytes(text: str) -> int:
    """Return the bytes of a text beyond those of an empty one; a wide character widens all."""
    return len(text) if text.isascii() else text.__sizeof__() - _EMPTY_TEXT_BYTES


def leave_index(index: dict[Key, Entry], entry: Entry) -> None:
    """Take an entry that was dropped out of an index, unless another one has its place.

    One that another cache stores between these two steps loses its place: a look at all caches
    finds it.
    """
    if index.get(entry.key) is entry:
        index.pop(entry.key, None)


class Cache:
    """Entries by key, at most ``limit`` bytes of them; ``shared`` has those in shared memory.

    ``entries`` may be read without a lock; everything else is for the owner of the state. An entry
    keeps its value decoded if ``kept`` has a function that does so, and ``encode`` returns codec
    and body of such a value.

    Several caches, each with an owner and a lock of its own, may have one index: a dictionary with
    the entries of all of them. Each key has the entry there that was stored last. ``home`` is the
    membership whose entries these are.

    The index only helps to find an entry. Ctrl-C, or the owner of another cache, may come between
    any two steps, and then the index has an entry that was dropped, or lacks one that is stored.
    What counts is the ``home`` of the entry. It is set before the entry is in the index, and
    :meth:`_leave`, which is the first step of dropping any entry, sets it to None. So an entry that
    has a home is stored there, wherever a hit has found it.
    """

    def __init__(self, limit: int, kept: Kept = NONE_KEPT, encode: Encode = NONE_DECODED) -> None:
        self.limit = limit
        self._kept = kept
        self._encode = encode
        self.size = 0
        self.evictions = 0
        self.entries: dict[Key, Entry] = {}
        self.home: Membership | None = None
        self._index: dict[Key, Entry] | None = None
        self._overhead = ENTRY_OVERHEAD
        self.shared: dict[bytes, Entry] = {}
        self.digests: dict[bytes, bytes] = {}  # of the large values, by token
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

    def insert(
        self, key: Key, seq: int, token: bytes, codec: str, body: bytes, bucket: int = 0
    ) -> Entry | None:
        """Store a value that Global read at ``seq``, in place of the key's entry.

        Returns None if it is above the limit, or if the entry is newer.
        """
        return self._insert(key, self.made(key, seq, token, codec, body, bucket))

    def made(self, key: Key, seq: int, token: bytes, codec: str, body: bytes, bucket: int) -> Entry:
        """Make an entry that is not stored."""
        decode = self._kept.get(codec)
        value = NotImplemented if decode is None else decode(body)
        size = self._overhead + _text_bytes(key)
        if value is NotImplemented:
            value = Stored(token, codec, body)
            size += STORED_OVERHEAD + len(body)
        else:
            size += _text_bytes(value) if type(value) is str else len(body)
        return Entry(key, value, seq, size, None, bucket)

    def insert_many(
        self, keys: list[Key], reply: GetReply, answers: dict[Key, Entry | Stored]
    ) -> None:
        """Store the small values of a reply, as :meth:`insert` does; note them in ``answers``."""
        seq, tokens, entries, kept = reply.seq, reply.tokens, self.entries, self._kept
        for index, (key, codec, body) in enumerate(zip(keys, reply.codecs, reply.bodies)):
            if body is None:
                continue
            assert type(body) is bytes
            newest = self._newest
            if codec == BYTES and codec in kept and newest is not None:
                # The usual case, in few steps.
                size = len(key) if key.isascii() else _text_bytes(key)
                size += self._overhead + len(body)
                if self.size + size <= self.limit:
                    entry = Entry(key, body, seq, size)
                    if entries.setdefault(key, entry) is entry:
                        entry.older = newest
                        newest.newer = self._newest = entry
                        self.size += size
                        answers[key] = entry
                        if self._index is not None:
                            entry.home = self.home
                            self._index[key] = entry
                        continue
            token = tokens[TOKEN_BYTES * index : TOKEN_BYTES * (index + 1)]
            answers[key] = self.insert(key, seq, token, codec, body) or Stored(token, codec, body)

    def insert_mapped(
        self,
        key: Key,
        seq: int,
        stored: Stored,
        shared: bool,
        bucket: int = 0,
        digest: bytes = b"",
    ) -> Entry | None:
        """Store a large value, whose body is a view; see :meth:`insert`.

        Without its content ``digest`` it is not among the :meth:`values`.
        """
        size = self._overhead + _text_bytes(key) + STORED_OVERHEAD + bool(digest) * DIGEST_OVERHEAD
        size += SHARED_OVERHEAD if shared else stored.size
        token = stored.token if shared else None
        entry = self._insert(key, Entry(key, stored, seq, size, token, bucket))
        if entry is not None and digest:
            self.digests[stored.token] = digest
        return entry

    def _insert(self, key: Key, entry: Entry) -> Entry | None:
        entries = self.entries
        former = entries.get(key)
        if entry.size > self.limit or (former is not None and former.seq > entry.seq):
            return None  # the former entry stays until its invalidation comes, and is reported
        if former is not None:
            entry.since = former.since
            self.discard(key)
        while self.size + entry.size > self.limit:
            self._evict()
        if entry.shared is not None:
            if len(self.shared) >= SHARED_MAX:
                self._evict_shared()
            self.shared[entry.shared] = entry
        newest = entry.older = self._newest
        if newest is None:
            self._oldest = entry
        else:
            newest.newer = entry
        self._newest = entry
        self.size += entry.size
        entry.home = None if self._index is None else self.home
        entries[key] = entry
        if self._index is not None:
            self._index[key] = entry
        return entry

    def discard(self, key: Key) -> Entry | None:
        """Remove a key's entry. Returns the entry, or None if the key is not cached."""
        entry = self.entries.get(key)
        if entry is not None:
            self._leave(entry)
            del self.entries[key]
            self._unlink(entry)
        return entry

    def values(self) -> Iterator[Value]:
        """Iterate over keys, codecs and bodies of all small values, beginning with the newest.

        They are those that are here now, also if the cache is changed or cleared meanwhile.
        """
        return self._encoded(list(self.entries.values()))

    def large_values(self) -> list[Value]:
        """Return the large values, beginning with the newest. Files do not stay mapped for it."""
        entries = self.entries.values() if self.digests else ()
        return list(filter(None, map(self._former_large, entries)))[::-1]

    def _former_large(self, entry: Entry) -> Value | None:
        value = entry.value
        if type(value) is not Stored or type(value.body) is not memoryview:
            return None
        digest = self.digests.get(value.token)
        if digest is None:
            return None
        view = value.body if entry.shared is None else None
        large = Large(len(value.body), digest)
        return entry.key, value.codec, FormerLarge(value.token, large, view)

    def _encoded(self, entries: list[Entry]) -> Iterator[Value]:
        while entries:
            entry = entries.pop()  # its memory is free when it is not needed any more
            value = entry.value
            if type(value) is not Stored:
                yield entry.key, *self._encode(value)
            elif type(value.body) is bytes:
                yield entry.key, value.codec, value.body

    def clear(self) -> None:
        """Remove all entries. A reader without a lock sees the same dictionary, emptied."""
        for entry in self.entries.values():
            self._leave(entry)
            entry.older = entry.newer = None  # so that no cycle waits for the garbage collector
        self.entries.clear()
        self.shared.clear()
        self.digests.clear()
        self._newest = self._oldest = self._hand = None
        self.size = 0

    def renew(self) -> dict[Key, Entry]:
        """Remove all entries and start a new dictionary. Returns the new one.

        Its entries have no home before :meth:`belong_to` is called.
        """
        self.clear()
        self.home = None  # Ctrl-C may come before there is another one
        self.entries = {}
        return self.entries

    def adopt(self, entries: dict[Key, Entry], digests: Mapping[bytes, bytes]) -> None:
        """Take over the entries of another cache, in the order in which they were stored.

        That cache may have been in the middle of an insertion. ``digests`` are those of its large
        values.
        """
        self.clear()
        self.entries = entries
        self.digests.update(digests)
        older = None
        for entry in entries.values():
            entry.older, entry.newer = older, None
            if older is None:
                self._oldest = entry
            else:
                older.newer = entry
            older = entry
            self.size += entry.size
            if entry.shared is not None:
                self.shared[entry.shared] = entry
        self._newest = older
        self.shrink()

    def shrink(self) -> None:
        """Evict what is beyond the limit."""
        while self.size > self.limit:
            self._evict()

    def join_index(self, index: dict[Key, Entry]) -> None:
        """Put all entries into an index, from now on."""
        self._index = index
        self._overhead = ENTRY_OVERHEAD + INDEX_OVERHEAD
        self.belong_to(self.home)

    def belong_to(self, home: Membership | None) -> None:
        """Note the membership whose entries these are."""
        self.home = home
        if self._index is not None:
            for entry in self.entries.values():
                entry.home = home
                self._index[entry.key] = entry

    def _leave(self, entry: Entry) -> None:
        """End the hits of an entry. This is the first step of dropping it.

        If Ctrl-C comes after this step the entry is still among the entries, so that what was about
        to drop it does so when it is repeated. The other way round it would not be found any more,
        and hits would go on.
        """
        entry.home = None
        if self._index is not None:
            leave_index(self._index, entry)

    def _unlink(self, entry: Entry) -> None:
        if entry.shared is not None and self.shared.get(entry.shared) is entry:
            del self.shared[entry.shared]
        value = entry.value
        if self.digests and type(value) is Stored:
            self.digests.pop(value.token, None)
        older = entry.older
        if (self._oldest if older is None else older.newer) is not entry:
            return  # Ctrl-C came in the middle of its insertion: it is not linked
        if self._hand is entry:
            self._hand = entry.newer
        if older is None:
            self._oldest = entry.newer
        else:
            older.newer = entry.newer
        if entry.newer is None:
            self._newest = entry.older
        else:
            entry.newer.older = entry.older
        self.size -= entry.size
        entry.older = entry.newer = None

    def _evict(self) -> None:
        entry = self._hand or self._oldest
        while entry is not None and entry.visited:
            entry.visited = 0
            entry = entry.newer or self._oldest
        assert entry is not None, "an empty cache has nothing to evict"
        self._hand = entry
        self._leave(entry)
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]
        self._unlink(entry)  # also if Ctrl-C came in the middle of its insertion
        self.evictions += 1

    def _evict_shared(self) -> None:
        """Remove the oldest shared entry that was not read since it was last the oldest (CLOCK)."""
        entry = next(iter(self.shared.values()))
        while entry.visited:
            entry.visited = 0
            assert entry.shared is not None
            self.shared[entry.shared] = self.shared.pop(entry.shared)
            entry = next(iter(self.shared.values()))
        self.discard(entry.key)
        self.evictions += 1
