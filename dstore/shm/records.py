"""Reading the host cache: no lock, and no value but one that was put for the key.

Writers and readers keep one rule: **a record at a position is intact while the tail of its ring is
not beyond that position.** A writer stores the new tail *before* it writes to the memory that it
has gained. A reader takes the index word, copies the record, and *then* loads the tail: if any of
the bytes it copied were already those of another record, the tail it loads is beyond its position.

Positions are never used twice, except after a writer was killed between the bytes and the head;
it had not written the index word then, so no reader knows that position. So a torn record is never
looked at. The CRC is for a writer that has lost its lock and does not know.

The steps of a reader are loads in the order of the program, which is enough on x86. On other
processors the compiled reader is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from dstore.compiled import native
from dstore.core.local.shared import Record
from dstore.shm.layout import (
    CRC_MASK,
    CRC_SHIFT,
    FRACTION_MASK,
    HEAD_BYTES,
    HEAD_OF_RECORD,
    HEADER_BYTES,
    MAIN,
    POSITION_MASK,
    POSITION_SHIFT,
    RECORD_UNITS_MIN,
    RESERVED,
    RING_BIT,
    SET_BITS,
    SET_SHIFT,
    SIZE,
    SMALL,
    TAG_MASK,
    TAG_SHIFT,
    TAIL,
    UNIT,
    UNITS_MASK,
    WAYS,
    Layout,
)

_unpack = HEAD_OF_RECORD.unpack_from
_record = tuple.__new__  # what the constructor of a named tuple calls; this saves a call


class Reader:
    """Looks keys up in the memory of a table. Safe from any thread.

    Where :mod:`dstore._native` is there, its class of the same name takes this one's place.
    """

    __slots__ = ("_index", "_main", "_raw", "_sets", "_small", "_visited", "_words")

    def __init__(self, memory: memoryview, layout: Layout, record: type[Record] = Record) -> None:
        self._raw = memory
        self._words = memory.cast("Q")
        self._index = HEADER_BYTES // UNIT
        self._visited = layout.visited - self._index
        self._sets = layout.index_words // WAYS
        self._small = layout.small // UNIT
        self._main = layout.main // UNIT

    def find(self, key: str, hash64: int) -> Record | None:
        """Return the record of a key, whose hash is ``hash64``, and mark it visited."""
        words, raw = self._words, self._raw
        fraction = hash64 >> SET_SHIFT & FRACTION_MASK
        first = self._index + (fraction * self._sets >> SET_BITS) * WAYS
        tag = hash64 >> TAG_SHIFT
        for place in range(first, first + WAYS):
            word = words[place]
            if word & TAG_MASK != tag or not word:
                continue
            if word & RING_BIT:
                ring, base = MAIN, self._main
            else:
                ring, base = SMALL, self._small
            # After the index word: a size or a tail from before it might be that of an earlier lap.
            tail = words[ring + TAIL]
            size = words[ring + SIZE]
            distance = (word >> POSITION_SHIFT) - tail & POSITION_MASK
            if distance >= size:
                continue
            position = tail + distance
            start = position % size
            left = words[ring + RESERVED] - start
            if left <= 0:  # no memory is touched that may not be reserved
                continue
            at = base + start
            top = words[at]
            units = top & UNITS_MASK
            if not RECORD_UNITS_MIN <= units <= left:
                continue
            data = raw[UNIT * at + UNIT : UNIT * (at + units)].tobytes()
            if words[ring + TAIL] > position:  # after the copy
                continue
            if crc32(data, position & CRC_MASK) != top >> CRC_SHIFT:
                continue
            hashed, seq, token, length, key_length, codec_length, _ = _unpack(data)
            begin = HEAD_BYTES + codec_length
            end = begin + key_length
            if hashed != hash64 or end + length > len(data):
                continue
            if data[begin:end] != key.encode("utf-8", "surrogateescape"):
                continue
            visited = place + self._visited
            if not raw[visited]:  # else the line would move from processor to processor
                raw[visited] = 1
            codec = data[HEAD_BYTES:begin].decode("ascii")
            return _record(Record, (seq, token, codec, data[end : end + length]))
        return None


def index_word(position: int, ring: int, tag: int) -> int:
    """Return the index word of a record at ``position`` in a ring."""
    bit = RING_BIT if ring == MAIN else 0
    return (position & POSITION_MASK) << POSITION_SHIFT | bit | tag


def is_dead(word: int, words: memoryview) -> bool:
    """Whether an index word is empty, or its record has left its ring."""
    ring = MAIN if word & RING_BIT else SMALL
    distance = (word >> POSITION_SHIFT) - words[ring + TAIL] & POSITION_MASK
    return not word or distance >= words[ring + SIZE]


def name_at(
    memory: memoryview, layout: Layout, words: memoryview, word: int
) -> tuple[str, int] | None:
    """Return the key and its hash of the record that an index word leads to, or None.

    They may be torn, and then a reader finds no record for them.
    """
    if is_dead(word, words):
        return None
    ring, base = (MAIN, layout.main) if word & RING_BIT else (SMALL, layout.small)
    tail = words[ring + TAIL]
    distance = (word >> POSITION_SHIFT) - tail & POSITION_MASK
    start = (tail + distance) % words[ring + SIZE]
    if words[ring + RESERVED] - start < RECORD_UNITS_MIN:
        return None
    at = base + UNIT * (start + 1)
    hash64, _, _, _, key_length, codec_length, _ = _unpack(memory, at)
    begin = at + HEAD_BYTES + codec_length
    key = bytes(memory[begin : begin + key_length])
    return key.decode("utf-8", "surrogateescape"), hash64


PureReader = Reader
if not TYPE_CHECKING and native is not None and hasattr(native, "Reader"):
    Reader = native.Reader
