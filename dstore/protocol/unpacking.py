"""Step-by-step unpacking: no frame becomes many times its size before it is checked.

A list within a list takes one byte in a frame and 72 bytes in Python: unpacked as a whole, 31 MiB
from a stranger become 2.4 GiB before anything is checked. So only small frames are unpacked as a
whole. Any other frame is unpacked one field at a time, and msgpack itself refuses each list,
table and extension that is not empty. A list that the message expects is opened by its reader,
which knows how long it may be. A few items of a long list are unpacked
together, and checked before the next ones are.

Beside the frame this takes at most two copies of it, its contents (four times as much where they
are wide text), some hundred bytes for each item of a list, whose number has a bound,
and 4 MiB.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgpack

from dstore.errors import BadMessage
from dstore.protocol.messages import Buffer

QUICK_BYTES_MAX, QUICK_ITEMS_MAX = 16 << 10, 256
"""A frame of at most this many bytes, with at most this many items in each list, is unpacked as a
whole and then checked. Unpacked it takes at most 4 MiB.
"""
TEXT_BYTES_MAX = QUICK_BYTES_MAX
"""Bytes of one text in a message. Keys, names and labels have fewer."""
METRICS_MAX = 16_384
"""Names and metrics in an answer to STATS: Global's own, and six for each of 1,000 Locals."""
METRICS_DEPTH_MAX = 4
"""Depth to which tables of metrics may be nested."""
NIL = frozenset((0xC0,))
LISTS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
TABLES = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
"""The first bytes of packed fields that are a table; those above, of None and of a list."""

_LIST_OF = struct.Struct(">BH")  # the tag of a list, and how many items it has


def unpacked(packed: Buffer) -> Any:
    """Unpack a few bytes as a whole. Raises what msgpack raises, also if a list is long."""
    return msgpack.unpackb(
        packed,
        unicode_errors="surrogateescape",
        max_array_len=QUICK_ITEMS_MAX,
        max_map_len=QUICK_ITEMS_MAX,
    )


def packed(things: list[object]) -> bytes:
    """Pack a few things, so that :func:`unpacked` returns them."""
    whole: bytes = msgpack.packb(things, unicode_errors="surrogateescape")
    return whole


class Frame:
    """Reads a packed message. All methods raise BadMessage, and what msgpack raises.

    ``one()`` returns the next field, which must be neither a list nor a table.
    """

    def __init__(self, packed: Buffer) -> None:
        self._packed = packed
        self._unpacker = msgpack.Unpacker(
            unicode_errors="surrogateescape",
            max_buffer_size=len(packed),
            max_str_len=TEXT_BYTES_MAX,
            max_array_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
        self._unpacker.feed(packed)
        self.one: Callable[[], Any] = self._unpacker.unpack

    @property
    def ended(self) -> bool:
        """Whether the whole message has been read."""
        return bool(self._unpacker.tell() == len(self._packed))

    def begins(self, tags: frozenset[int]) -> bool:
        """Whether the next field is of this kind: ``NIL``, ``LISTS`` or ``TABLES``."""
        at = self._unpacker.tell()
        return at < len(self._packed) and self._packed[at] in tags

    def some(self, count: int) -> list[Any]:
        """Return the next ``count`` fields, of which none may be a list or a table."""
        things = list(islice(self._unpacker, count))
        if len(things) < count:
            raise BadMessage("it ends within a list")
        return things

    def pieces(self, count: int) -> Iterator[list[Any] | Frame]:
        """Yield the next ``count`` fields, which may be lists and tables.

        Small ones come unpacked, a few together; a large one comes as a frame of its own.
        """
        if count == 1:  # as in nearly all messages that are large
            yield self
            return
        skip, tell = self._unpacker.skip, self._unpacker.tell
        start = end = tell()
        items = 0
        for _ in range(count):
            skip()
            after = tell()
            if items and (after - start > QUICK_BYTES_MAX or items == QUICK_ITEMS_MAX):
                yield self._piece(start, end, items)
                start, items = end, 0
            end = after
            items += 1
        if items:
            yield self._piece(start, end, items)

    def _piece(self, start: int, end: int, items: int) -> list[Any] | Frame:
        packed = self._packed[start:end]
        if end - start > QUICK_BYTES_MAX:
            return Frame(packed)
        things: list[Any] = unpacked(_LIST_OF.pack(0xDC, items) + packed)
        return things

    def length(self, least: int, most: int) -> int:
        """Open the list that comes next. Returns how many items it has."""
        length: int = self._unpacker.read_array_header()
        check_length(length, least, most)
        return length

    def metrics(self) -> Any:
        """Return the next field, which may be a table of metrics with tables in it."""
        return self._table(METRICS_MAX, METRICS_DEPTH_MAX)[0] if self.begins(TABLES) else self.one()

    def _table(self, room: int, depth: int) -> tuple[dict[str, Any], int]:
        """Return a table, and how many more names and metrics there may be after it."""
        pairs: int = self._unpacker.read_map_header()
        room -= 2 * pairs
        if room < 0 or not depth:
            raise BadMessage(f"there are at most {METRICS_MAX:,} metrics, {METRICS_DEPTH_MAX} deep")
        table: dict[str, Any] = {}
        for _ in range(pairs):
            name = self.one()
            if type(name) is not str:
                raise BadMessage(f"the name of a metric is text, not a {type(name).__name__}")
            if self.begins(TABLES):
                table[name], room = self._table(room, depth - 1)
            else:
                table[name] = self.one()
        return table, room


def check_length(length: int, least: int, most: int) -> None:
    """Raise BadMessage if a list has too few items or too many."""
    if not least <= length <= most:
        raise BadMessage(f"a list has {least:,} to {most:,} items here, not {length:,}")
