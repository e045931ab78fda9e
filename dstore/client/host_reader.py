"""Reading the host cache, as hits read entries: without a lock, in the order that a hit has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dstore.compiled import native
from dstore.core.local.key_hash import KeyHash
from dstore.core.local.membership import Membership
from dstore.core.local.shared import Record, seen_again
from dstore.protocol.messages import Key, Stored
from dstore.runtime import clock
from dstore.shm.records import Reader

BYTES = "bytes"
Again = list[tuple[Key, int, Record]]
"""Keys that were read from the host cache before, with their hashes and records."""


class HostReader:
    """Reads values of the host cache that a membership allows to use. Safe from any thread.

    ``hash_key`` is that of the page. Where :mod:`dstore._native` is there, its class of the same
    name takes this one's place.
    """

    def __init__(self, hash_key: bytes, reader: Reader) -> None:
        self._hashed = KeyHash(hash_key)
        self._find = reader.find

    def read(self, membership: Membership, key: Key) -> tuple[int, Record] | None:
        """Return the hash of a key and its record, or None. Raises UnicodeEncodeError."""
        lease_end, words = membership.lease[0], membership.words
        hashed = self._hashed(key)
        record = self._find(key, hashed)
        if words is None or record is None or words[hashed % len(words)] > record.seq:
            return None
        # Last, as in a hit: lease, value and word may all have changed since.
        return None if clock.now_ns() >= lease_end else (hashed, record)

    def collect(
        self, membership: Membership, keys: Sequence[Key], found: dict[Key, Any], seen: memoryview
    ) -> tuple[list[Key], Again, int]:
        """Put into ``found`` the values of keys that are in the cache or the host cache.

        Values that need decoding are left to others. ``seen`` is :attr:`Seen.slots`. Returns the
        keys that were not found, those that were read from the host cache before, and how many were
        read from there.
        """
        lease_end, words = membership.lease[0], membership.words
        rest: list[Key] = []
        again: Again = []
        if words is None:
            return list(keys), again, 0
        hash_of, find, entries, buckets = self._hashed, self._find, membership.entries, len(words)
        read = 0
        for key in keys:
            entry = entries.get(key)
            if entry is not None and words[entry.bucket] <= entry.seq:
                if type(entry.value) is Stored:
                    rest.append(key)
                else:
                    entry.visited = 1
                    found[key] = entry.value
                continue
            try:
                hashed = hash_of(key)
            except UnicodeEncodeError:  # it is no key
                rest.append(key)
                continue
            record = find(key, hashed)
            if record is None or words[hashed % buckets] > record[0] or record[2] != BYTES:
                rest.append(key)
                continue
            found[key] = record[3]
            read += 1
            if seen_again(seen, hashed):
                again.append((key, hashed, record))
        if clock.now_ns() >= lease_end:
            found.clear()
            return list(keys), [], 0
        return rest, again, read


PureHostReader = HostReader
if not TYPE_CHECKING and native is not None:
    HostReader = native.HostReader
