"""The host cache in memory: where its parts are, and what a record looks like.

::

    header   4,096 bytes of words: what the table is, tails and heads of the rings, counters
    index    words, in sets of WAYS; the set of a key is given by its hash
    visited  one byte for each index word
    ghost    for each index word 32 bits: a fingerprint of 20, a time stamp of 12
    small    the ring of new records, SMALL_SHARE of the rest
    main     the ring of records that were read again

A word is an aligned 64-bit integer in the byte order of the machine, and is read and written whole.

Lengths and positions in the rings are in *units* of 8 bytes. A *position* counts the units that
were ever appended to its ring, so it only grows, and names one record for ever; the record is at
``position % size``. A record does not wrap: a *filler* takes what is left at the end of the ring.
An index word is ``position << 16 | ring << 15 | tag``, of which the position has 48 bits; the
rest follows from the tail, since a record is less than a ring beyond it. An empty index word is 0;
the first position is 1.

A record is::

    word 0   CRC << 32 | units of the record; the CRC is that of all that follows, begun with
             the low 32 bits of the position, so that a copy of a record elsewhere is none
    word 1   hash of the key
    word 2   seq
    16 bytes token
    word 5   lengths: body 32 bits, key 16 bits, codec 8 bits, 8 bits of 0
    codec, key, body, zeros to the next unit

The hash is keyed, so that what is in a body cannot pass for a record of another key.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC = int.from_bytes(b"dstabl01", "big")
"""The first word of a table: another number for each other layout, and for each byte order."""
HEADER_BYTES = 4096
PAGE_BYTES = 4096
WAYS = 8
"""Index words of a set, which is one line of the processor's cache. A record is in one of them."""
BYTES_PER_WORD = 128
"""Bytes of a table for each index word, about. A value of 100 bytes takes some 170 in its ring.
With one word for 192 bytes the sets overflow, and such values have 2 % fewer hits; values of 4,000
bytes have 0.3 % more.
"""
SMALL_SHARE = 10
"""The small ring is one part in this many of the memory of both."""
RECORD_SHARE = 4
"""A record takes at most one part in this many of the small ring; a larger one is refused."""
SIZE_MIN = 1 << 20
"""Bytes of the smallest table. A smaller one would keep little beside its index."""
SIZE_MAX = 1 << 40
"""Bytes of the largest table."""

# Places of words in the header. What readers load often shares one line of the processor's cache;
# what each put changes is in another.
WORD_MAGIC, WORD_SIZE, WORD_INDEX, WORD_SMALL, WORD_MAIN = range(5)
SMALL, MAIN = 8, 24
"""The words of the two rings begin here."""
TAIL, SIZE, RESERVED, HEAD = 0, 1, 2, 8
"""Words of a ring: positions of the oldest record and of the next one; its units, and those among
them whose memory is reserved.
"""
PUTS, EVICTIONS, MOVES, READMITTED, RESETS = range(40, 45)
"""Counters: records written, records that had to leave, records moved within or between the rings,
records that came back after they had left, rings found damaged and emptied.
"""

UNIT = 8
POSITION_SHIFT = 16
POSITION_MASK = (1 << 48) - 1
RING_BIT = 1 << 15
TAG_MASK = RING_BIT - 1
# Different bits of a hash. The middle ones, as a fraction of 1 with 32 bits, choose one of any
# number of sets, and the place in the ghost; the others are tag and fingerprint. The lowest ones
# choose the bucket of an invalidation, too.
TAG_SHIFT = 49
SET_SHIFT = 17
SET_BITS = 32
FINGERPRINT_MASK = (1 << 20) - 1
STAMP_BITS = 12
STAMP_MASK = (1 << STAMP_BITS) - 1
GHOST_STEPS = 64
"""The ghost remembers a key until this many stamps later. A stamp is a step of the small ring's
tail, of one part in this many of the main ring: so it remembers what would fill the main ring.
"""
CRC_SHIFT = 32
CRC_MASK = UNITS_MASK = FRACTION_MASK = (1 << 32) - 1
FILLER = 1 << 31
"""Set in word 0 of a filler, beside its units."""
FIRST = 1
"""The first position."""
HEAD_OF_RECORD = struct.Struct("=QQ16sIHBB")
"""What follows word 0: hash, seq, token, lengths of body, key and codec, 0."""
HEAD_BYTES = HEAD_OF_RECORD.size
RECORD_UNITS_MIN = 1 + HEAD_BYTES // UNIT
CODEC_BYTES_MAX = 255
KEY_BYTES_MAX = 65_535


class Layout(NamedTuple):
    """Where the parts of a table begin, in bytes, and how long they are."""

    index_words: int
    visited: int
    ghost: int
    small: int
    small_units: int
    main: int
    main_units: int
    total: int

    @classmethod
    def of(cls, size: int) -> Layout:
        """Return the layout of a table of ``size`` bytes, of which it uses nearly all."""
        words = size // BYTES_PER_WORD // WAYS * WAYS
        rest = size - HEADER_BYTES - _padded(words * (UNIT + 1 + 4))
        small = rest // SMALL_SHARE // PAGE_BYTES * PAGE_BYTES
        main = (rest - small) // PAGE_BYTES * PAGE_BYTES
        if small < PAGE_BYTES:
            raise ValueError(f"{size:,} bytes are too few for a host cache")
        return cls.build(words, small // UNIT, main // UNIT)

    @classmethod
    def build(cls, words: int, small_units: int, main_units: int) -> Layout:
        """Return the layout with this many index words, and units in the rings."""
        assert words % WAYS == 0
        visited = HEADER_BYTES + words * UNIT
        ghost = visited + words
        small = HEADER_BYTES + _padded(words * (UNIT + 1 + 4))
        main = small + small_units * UNIT
        return cls(
            words, visited, ghost, small, small_units, main, main_units, main + main_units * UNIT
        )


def _padded(count: int) -> int:
    return -(-count // PAGE_BYTES) * PAGE_BYTES
