"""Writing the host cache: two rings, a small one for what is new and a main one.

This is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) for
records of any length. New records go to the small ring. When a ring is full its oldest record
leaves. From the small ring it moves to the main one if it was read meanwhile; else only a
fingerprint of its key is kept for a while, in the *ghost*. A key whose fingerprint is there goes to
the main ring at once. From the main ring a record that was read is appended again, and any other
dropped. Until the main ring has been filled for the first time, all new records go there: a tenth
of the memory would not hold what the first process puts until the second one reads it.

One writer works at a time. It may be killed between any two stores, so their order is

1. the tail, beyond all that is about to be overwritten,
2. the bytes,
3. the head,
4. the index word,

and readers find nothing but whole records at each point (:mod:`dstore.shm.records`). A writer that
has lost its lock may disturb another one. So what a writer finds in a ring is checked, and a ring
in which something is wrong is emptied; a record moves only if its CRC is right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias
from zlib import crc32

from dstore.compiled import native
from dstore.protocol.keys import to_bytes
from dstore.shm.layout import (
    CODEC_BYTES_MAX,
    CRC_MASK,
    CRC_SHIFT,
    EVICTIONS,
    FILLER,
    FINGERPRINT_MASK,
    FIRST,
    FRACTION_MASK,
    GHOST_STEPS,
    HEAD,
    HEAD_BYTES,
    HEAD_OF_RECORD,
    HEADER_BYTES,
    KEY_BYTES_MAX,
    MAIN,
    MOVES,
    POSITION_MASK,
    POSITION_SHIFT,
    PUTS,
    READMITTED,
    RECORD_SHARE,
    RECORD_UNITS_MIN,
    RESERVED,
    RESETS,
    RING_BIT,
    SET_BITS,
    SET_SHIFT,
    SIZE,
    SMALL,
    STAMP_BITS,
    STAMP_MASK,
    TAG_MASK,
    TAG_SHIFT,
    TAIL,
    UNIT,
    UNITS_MASK,
    WAYS,
    Layout,
)
from dstore.shm.records import index_word, is_dead

MOVES_MAX = 32
"""Records that one put moves at most. What would be moved beyond that is dropped."""
TOKEN_BYTES = 16
SEQ_MAX = (1 << 64) - 1

Reserve: TypeAlias = Callable[[int, int], int]
"""Reserves memory from an offset on, at least to another one; both in bytes of the file.

Returns the offset to which memory is reserved now; less than asked if there is no more.
"""


class Survivor:
    """A record that is on its way from the tail of a ring to the head of the main ring."""

    __slots__ = ("data", "hash64", "place", "word")

    def __init__(self, data: bytes, hash64: int, place: int, word: int) -> None:
        self.data = data
        self.hash64 = hash64
        self.place = place
        self.word = word


class Writer:
    """Puts records into the memory of a table. For one caller at a time, of all processes.

    Where :mod:`dstore._native` is there, its class of the same name takes this one's place.
    """

    def __init__(self, memory: memoryview, layout: Layout, reserve: Reserve) -> None:
        self._raw = memory
        self._words = memory.cast("Q")
        self._ghost = memory[layout.ghost : layout.ghost + 4 * layout.index_words].cast("I")
        self._index = HEADER_BYTES // UNIT
        self._visited = layout.visited - self._index
        self._sets = layout.index_words // WAYS
        self._slots = layout.index_words
        self._bases = {SMALL: layout.small // UNIT, MAIN: layout.main // UNIT}
        self._reserve = reserve
        self._moves_left = 0

    def put(self, key: str, hash64: int, seq: int, token: bytes, codec: str, body: bytes) -> bool:
        """Write a record. False if there is a newer one of its key, or it is too large.

        A record of the same write and ``seq`` that is there already counts as written.
        """
        words = self._words
        raw_key, raw_codec = to_bytes(key), codec.encode()
        length = HEAD_BYTES + len(raw_codec) + len(raw_key) + len(body)
        units = 1 + (length + UNIT - 1) // UNIT
        if (
            units > words[SMALL + SIZE] // RECORD_SHARE
            or len(raw_key) > KEY_BYTES_MAX
            or len(raw_codec) > CODEC_BYTES_MAX
            or not codec.isascii()
            or len(token) != TOKEN_BYTES
            or not 0 <= seq <= SEQ_MAX
        ):
            return False
        place, former = self._present(raw_key, hash64)
        if former is not None:
            if former[0] > seq:
                return False
            if former == (seq, token):
                return True
        ring = self._ring_for(hash64, units, words[place] if place else 0)
        data = b"".join(
            (
                HEAD_OF_RECORD.pack(hash64, seq, token, len(body), len(raw_key), len(raw_codec), 0),
                raw_codec,
                raw_key,
                body,
                bytes(units * UNIT - UNIT - length),
            )
        )
        self._moves_left = MOVES_MAX
        survivors: deque[Survivor] = deque()
        position = self._append(ring, data, survivors)
        if position:
            tag = hash64 >> TAG_SHIFT
            place = place or self._place_for(hash64)
            self._publish(place, index_word(position, ring, tag))
            words[PUTS] += 1
        while survivors:
            self._move(survivors.popleft(), survivors)
        return position != 0

    # ---- the index ----------------------------------------------------------------------------

    def _first(self, hash64: int) -> int:
        fraction = hash64 >> SET_SHIFT & FRACTION_MASK
        return self._index + (fraction * self._sets >> SET_BITS) * WAYS

    def _present(self, raw_key: bytes, hash64: int) -> tuple[int, tuple[int, bytes] | None]:
        """Return the place of a key's record with its seq and token, or 0 and None."""
        words, tag, first = self._words, hash64 >> TAG_SHIFT, self._first(hash64)
        for place in range(first, first + WAYS):
            word = words[place]
            if word & TAG_MASK != tag or is_dead(word, words):
                continue
            ring = MAIN if word & RING_BIT else SMALL
            tail = words[ring + TAIL]
            position = tail + ((word >> POSITION_SHIFT) - tail & POSITION_MASK)
            data = self._data(ring, position)
            if data is None:
                continue
            hashed, seq, token, _, key_length, codec_length, _ = HEAD_OF_RECORD.unpack_from(data)
            begin = HEAD_BYTES + codec_length
            if hashed == hash64 and data[begin : begin + key_length] == raw_key:
                return place, (seq, token)
        return 0, None

    def _place_for(self, hash64: int) -> int:
        """Return the place for a new word: of a dead record, else an unread one, else any."""
        words, first = self._words, self._first(hash64)
        unread = 0
        for place in range(first, first + WAYS):
            if is_dead(words[place], words):
                return place
            if not self._raw[place + self._visited]:
                unread = place
        words[EVICTIONS] += 1
        if unread:
            return unread
        for place in range(first, first + WAYS):
            self._raw[place + self._visited] = 0
        return first + (hash64 & WAYS - 1)

    def _publish(self, place: int, word: int) -> None:
        self._raw[place + self._visited] = 0
        self._words[place] = word

    def _place_of(self, hash64: int, word: int) -> int:
        """Return the place that has exactly this word, or 0."""
        first = self._first(hash64)
        for place in range(first, first + WAYS):
            if self._words[place] == word:
                return place
        return 0

    # ---- which ring ---------------------------------------------------------------------------

    def _ring_for(self, hash64: int, units: int, former: int) -> int:
        words = self._words
        head = words[MAIN + HEAD]
        if head + units <= words[MAIN + SIZE]:  # the first lap
            return MAIN
        if former:
            return MAIN if former & RING_BIT else SMALL
        slot, mark = self._slot(hash64)
        noted = self._ghost[slot]
        age = mark - noted & STAMP_MASK
        if noted >> STAMP_BITS != mark >> STAMP_BITS or age > GHOST_STEPS:
            return SMALL
        self._ghost[slot] = 0
        words[READMITTED] += 1
        return MAIN

    def _slot(self, hash64: int) -> tuple[int, int]:
        """Return the place of a key in the ghost, and what is noted there if it leaves now."""
        words = self._words
        fraction = hash64 >> SET_SHIFT & FRACTION_MASK
        stamp = words[SMALL + TAIL] // (words[MAIN + SIZE] // GHOST_STEPS + 1) & STAMP_MASK
        mark = (hash64 & FINGERPRINT_MASK) << STAMP_BITS | stamp
        return fraction * self._slots >> SET_BITS, mark

    # ---- the rings ----------------------------------------------------------------------------

    def _append(self, ring: int, data: bytes, survivors: deque[Survivor]) -> int:
        """Append a record. Returns its position, or 0 if the ring has no room for any such."""
        words, base = self._words, self._bases[ring]
        units = 1 + len(data) // UNIT
        while True:
            head, size = words[ring + HEAD], words[ring + SIZE]
            if units > size:
                return 0
            start = head % size
            filler = 0 if start + units <= size else size - start
            if words[ring + RESERVED] < size and self._grow(ring, size, start, units, filler):
                continue
            end = head + filler + units
            if end - words[ring + TAIL] <= size:
                break
            self._leave(ring, survivors)
        # The room is gained: the tail is stored. Now the bytes, and the head.
        if filler:
            words[base + start] = FILLER | filler
        position = head + filler
        at = base + position % size
        words[at] = crc32(data, position & CRC_MASK) << CRC_SHIFT | units
        self._raw[UNIT * at + UNIT : UNIT * (at + units)] = data
        words[ring + HEAD] = end
        return position

    def _grow(self, ring: int, size: int, start: int, units: int, filler: int) -> bool:
        """Reserve memory for an append in the first lap. Returns whether the size has changed.

        If there is no more memory the ring ends where the reserved memory ends.
        """
        words, base = self._words, self._bases[ring]
        reserved = words[ring + RESERVED]
        wanted = size if filler else start + units
        if wanted <= reserved:
            return False
        end = self._reserve(UNIT * (base + reserved), UNIT * (base + wanted)) // UNIT - base
        end = max(reserved, min(end, size))
        words[ring + RESERVED] = end
        if end >= wanted:
            return False
        words[ring + SIZE] = end
        return True

    def _data(self, ring: int, position: int) -> bytes | None:
        """Return what follows word 0 of the record at a position, or None if it is damaged."""
        words = self._words
        start = position % (words[ring + SIZE] or 1)
        at = self._bases[ring] + start
        left = words[ring + RESERVED] - start
        if left <= 0:
            return None
        top = words[at]
        units = top & UNITS_MASK
        if not RECORD_UNITS_MIN <= units <= left:
            return None
        data = self._raw[UNIT * at + UNIT : UNIT * (at + units)].tobytes()
        return data if crc32(data, position & CRC_MASK) == top >> CRC_SHIFT else None

    def _leave(self, ring: int, survivors: deque[Survivor]) -> None:
        """Have the oldest record of a ring leave it."""
        words = self._words
        tail, head, size = words[ring + TAIL], words[ring + HEAD], words[ring + SIZE]
        start = tail % (size or 1)  # 0 in a child that was forked by a signal handler, here
        if start >= words[ring + RESERVED]:
            self._reset(ring)
            return
        top = words[self._bases[ring] + start]
        units = top & UNITS_MASK & ~FILLER
        least = 1 if top & FILLER else RECORD_UNITS_MIN
        if not (least <= units <= size - start and tail + units <= head <= tail + size):
            self._reset(ring)
            return
        if top & FILLER:
            words[ring + TAIL] = tail + units
            return
        hash64 = words[self._bases[ring] + start + 1]
        word = index_word(tail, ring, hash64 >> TAG_SHIFT)
        place = self._place_of(hash64, word)
        if not place:  # replaced since, or its place was taken
            words[ring + TAIL] = tail + units
            return
        read = self._raw[place + self._visited]
        data = self._data(ring, tail) if read and self._moves_left else None
        words[ring + TAIL] = tail + units
        if data is not None:
            self._moves_left -= 1
            survivors.append(Survivor(data, hash64, place, word))
            return
        if ring == SMALL:
            slot, mark = self._slot(hash64)
            self._ghost[slot] = mark
        words[place] = 0
        words[EVICTIONS] += 1

    def _move(self, record: Survivor, survivors: deque[Survivor]) -> None:
        """Append a record to the main ring that has left a ring, unless its place is taken."""
        words = self._words
        taken = words[record.place] != record.word
        position = 0 if taken else self._append(MAIN, record.data, survivors)
        if not position:
            words[EVICTIONS] += 1
        else:
            tag = record.hash64 >> TAG_SHIFT
            self._publish(record.place, index_word(position, MAIN, tag))
            words[MOVES] += 1

    def _reset(self, ring: int) -> None:
        """Empty a ring in which something is wrong, at positions that were never used."""
        words = self._words
        position = max(words[ring + TAIL], words[ring + HEAD])
        words[ring + TAIL] = position
        words[ring + HEAD] = position
        words[RESETS] += 1


def begin(words: memoryview, layout: Layout, small_reserved: int, main_reserved: int) -> None:
    """Write the words of the rings of a new table, whose memory is zero."""
    for ring, size, reserved in (
        (SMALL, layout.small_units, small_reserved),
        (MAIN, layout.main_units, main_reserved),
    ):
        words[ring + TAIL] = words[ring + HEAD] = FIRST
        words[ring + SIZE] = size
        words[ring + RESERVED] = reserved


PureWriter = Writer
if not TYPE_CHECKING and native is not None and hasattr(native, "Writer"):
    Writer = native.Writer
