"""The invalidation vector: which invalidation was the last to be applied in each bucket of keys.

It stands in for the invalidations themselves: a value that Global read at ``seq`` is out of date if
the word of its key's bucket is above ``seq``. Keys that share a bucket cost each other a fill, and
never cause a stale read. Words only grow.
"""

from __future__ import annotations

from dstore.core.local.key_hash import KeyHash
from dstore.protocol.messages import Key

BUCKETS = 1024
"""Words of the vector of one process. It decides about replies in flight only, so few will do."""
WORD_BYTES = 8


class Vector:
    """The words, as a memoryview of the format ``Q``, and the place of each key among them.

    ``hash_key`` is the key of the hash, 16 bytes: which keys share a bucket cannot be foreseen.
    ``words`` are in the memory of this process unless they are given.
    """

    __slots__ = ("buckets", "hashed", "words")

    def __init__(self, hash_key: bytes, buckets: int, words: memoryview | None = None) -> None:
        self.hashed = KeyHash(hash_key)
        """Returns the hash of a key, 64 bits."""
        self.buckets = buckets
        if words is None:
            words = memoryview(bytearray(WORD_BYTES * buckets)).cast("Q")
        self.words = words

    def bucket(self, key: Key) -> int:
        """Return the bucket of a key."""
        return self.hashed(key) % self.buckets

    def note(self, key: Key, seq: int) -> None:
        """Note that invalidation ``seq`` is one of ``key``. A word never becomes smaller."""
        bucket = self.bucket(key)
        if self.words[bucket] < seq:
            self.words[bucket] = seq

    def flush(self, seq: int) -> None:
        """Note an invalidation ``seq`` of every key."""
        for bucket in range(self.buckets):
            self.words[bucket] = seq

    def after(self, key: Key, seq: int) -> bool:
        """Whether an invalidation after ``seq`` may have been one of ``key``."""
        return self.words[self.bucket(key)] > seq
