"""Packed messages, read so that nothing becomes many times its size before it is checked.

A list within a list takes one byte in a frame and 72 in Python: unpacked as a whole, 31 MiB that a
stranger has sent become 2.4 GiB before anybody has looked at them. So only what is small is
unpacked as a whole. Of anything else the shape comes first: msgpack makes one thing at a time, and
refuses by itself each list, table and extension that is not empty. What has its place in a message
is opened by its reader, who knows how long it may be; of a long list a few items are unpacked
together, and checked before the next ones are.

That takes, beside the frame, at most two copies of it, what is in it (four bytes for one where that
is text of wide characters), some hundred bytes for each item of a list, whose number has a bound,
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
"""So few bytes, with so few items in each list, are unpacked as a whole and then checked. Whatever
is in them takes at most 4 MiB then.
"""
TEXT_BYTES_MAX = QUICK_BYTES_MAX
"""Bytes of one text in a message. Keys, names and labels have fewer."""
METRICS_MAX = 16_384
"""Names and metrics in an answer to STATS: some of Global's, and six for each of 1,000 Locals."""
METRICS_DEPTH_MAX = 4
"""Tables of metrics within one another."""
NIL = frozenset((0xC0,))
LISTS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
TABLES = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))


_LIST_OF = struct.Struct(">BH")  # the tag of a list, and how many items it has


def unpacked(packed: Buffer) -> Any:
    """What is packed in a few bytes. Raises what msgpack raises, also if a list in it is long."""
    return msgpack.unpackb(
        packed,
        unicode_errors="surrogateescape",
        max_array_len=QUICK_ITEMS_MAX,
        max_map_len=QUICK_ITEMS_MAX,
    )


class Frame:
    """A packed message that is being read. All methods raise BadMessage, and what msgpack raises.

    ``one`` gives what comes next, if that is neither a list nor a table.
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

    def __repr__(self) -> str:
        return f"<Frame {self._unpacker.tell()}/{len(self._packed)}>"

    @property
    def ended(self) -> bool:
        """Whether all has been read."""
        return bool(self._unpacker.tell() == len(self._packed))

    def begins(self, tags: frozenset[int]) -> bool:
        """Whether what comes next is of this kind."""
        at = self._unpacker.tell()
        return at < len(self._packed) and self._packed[at] in tags

    def some(self, count: int) -> list[Any]:
        """The next things, of which none is a list or a table."""
        things = list(islice(self._unpacker, count))
        if len(things) < count:
            raise BadMessage("it ends within a list")
        return things

    def pieces(self, count: int) -> Iterator[list[Any] | Frame]:
        """The next things, whatever they are: a few small ones together, or a large one by itself,
        that is yet to be read.
        """
        if count == 1:  # as nearly all have that are large
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
        """Begin the list that comes next: how many items it has."""
        length: int = self._unpacker.read_array_header()
        check_length(length, least, most)
        return length

    def metrics(self) -> Any:
        """A table of metrics, in which there may be others."""
        return self._table(METRICS_MAX, METRICS_DEPTH_MAX)[0] if self.begins(TABLES) else self.one()

    def _table(self, room: int, depth: int) -> tuple[dict[str, Any], int]:
        """A table, and how many more names and metrics there may be after it."""
        pairs: int = self._unpacker.read_map_header()
        room -= 2 * pairs
        if room < 0 or not depth:
            raise BadMessage(f"there are at most {METRICS_MAX:,} metrics, {METRICS_DEPTH_MAX} deep")
        table: dict[str, Any] = {}
        for _ in range(pairs):
            name = self.one()
            if type(name) is not str:
                raise BadMessage(f"the name of a figure is text, not a {type(name).__name__}")
            if self.begins(TABLES):
                table[name], room = self._table(room, depth - 1)
            else:
                table[name] = self.one()
        return table, room


def check_length(length: int, least: int, most: int) -> None:
    """Raise BadMessage if a list has too few items or too many."""
    if not least <= length <= most:
        raise BadMessage(f"a list has {least:,} to {most:,} items here, not {length:,}")
