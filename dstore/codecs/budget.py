"""How much memory a packed value takes when it is decoded, found out without decoding it.

Anybody may have stored a value, and its readers build it. A byte of msgpack can be an empty list,
of 64 bytes, in a slot of 8: so 8 MiB became 611 MiB, afresh for each reader. What a value may take
is therefore bounded by its size. What would take more is refused by its readers, and by its writer,
so that nobody stores what nobody can read. The bound is far from what programs store:

============================================  ==============================
items                                         bytes in memory for one packed
============================================  ==============================
numbers, records with some text                3 to 15
short words, pairs of small numbers           12 to 30
an empty list or dict; a dict with one item   72 to 100
============================================  ==============================

The packed value is walked through item by item, with what each takes in Python (3.10 to 3.14, 64
bits, as the allocator rounds it up). Numbers that follow one another are taken thousands at a time.
"""

from __future__ import annotations

from dstore.config import DECODED_FACTOR, DECODED_FREE
from dstore.protocol.messages import Buffer

CHECKED_FROM = 64 << 10
"""A value of fewer bytes need not be walked through: it takes less than DECODED_FREE."""
DEPTH_MAX = 100
"""Lists, tuples and dicts inside one another, at most."""
TUPLE = 1
"""The msgpack extension type of a tuple: the packed list of its items."""

# Bytes, beside the slot in the list or dict that an item is in.
SLOT = 8
LIST, DICT, NUMBER, TEXT, BYTES = 64, 64, 32, 64, 48
TUPLE_MORE = 64
"""What a tuple takes, while it is made, beside a list of its items."""
SMALL_DICT, SMALL_DICT_MAX = 176, 5
"""The table of a dict with so few items."""
PAIR, LARGE_PAIR, LARGE_DICT_MIN = 56, 160, 1000
"""An item of a larger dict; and of a large one, which may be made from a list of its items."""
NAME = 64
"""The first of equal keys, beside the text that it is. All others are the same object."""
NAMES_MAX = 4096
"""Different keys that are known again."""

ROW_MAX, ROW_MIN = 4096, 32
"""Numbers that are taken together. In a list of fewer items it is not worth trying."""
NO_ROW = 1024
"""Bytes after which it is tried again."""
ROWS = (
    (1, 0, (*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xFB, 0x100))),  # Python has each only once
    (1, NUMBER, range(0xE0, 0xFB)),
    (1, LIST, (0x80, 0x90)),  # without items, and DICT is as much
    (2, NUMBER, (0xCC, 0xD0)),
    (3, NUMBER, (0xCD, 0xD1)),
    (5, NUMBER, (0xCA, 0xCE, 0xD2)),
    (9, NUMBER, (0xCB, 0xCF, 0xD3)),
)
"""Items of the same length: this, what each takes, and how they begin."""
_ROW: list[bytes] = [b""] * 256
_WIDTH = [0] * 256  # 0: neither a number nor a short text
_TAKES = [0] * 256
for _width, _takes, _tags in ROWS:
    for _tag in _tags:
        _WIDTH[_tag], _TAKES[_tag], _ROW[_tag] = _width, _takes, bytes(_tags)
for _tag in range(0xA0, 0xC0):
    _WIDTH[_tag], _TAKES[_tag] = 1 + (_tag & 31), TEXT + (_tag & 31)
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_LENGTH_BYTES |= {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_FIXED_EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def check(body: Buffer) -> None:
    """Raise ValueError if a packed value would take too much memory, is nested too deeply, or has
    in it what no value has.
    """
    allowed = DECODED_FACTOR * len(body) + DECODED_FREE
    try:
        takes(body, allowed)
    except IndexError:
        raise ValueError("it ends too early") from None


def takes(body: Buffer, allowed: int) -> int:
    """How many bytes a value takes. Raises ValueError, and IndexError at the end of the body."""
    at = total = retry_at = 0
    left, is_dict, end = 1, False, len(body)  # of the list or dict, the latter counted twice
    outer: list[tuple[int, bool, int]] = []
    names: set[bytes] = set()
    while True:
        if total > allowed:
            raise _too_much(len(body), allowed)
        while not left:
            if end >= 0 and at != end:
                raise ValueError(f"something ends at {at} that is to end at {end}")
            if not outer:
                return total
            left, is_dict, end = outer.pop()
        tag = body[at]
        width = _WIDTH[tag]
        if left > ROW_MIN and at >= retry_at and _ROW[tag]:
            count = min(left, ROW_MAX)
            row = _row_length(body, at, count)
            at += row * width
            total += row * _TAKES[tag]
            left -= row
            if row < count:
                retry_at = at + NO_ROW
            continue
        left -= 1
        if not width:
            outer.append((left, is_dict, end))
            at, more, left, is_dict, end = _opened(body, at, len(outer))
            total += more
            continue
        more = _TAKES[tag]
        if is_dict and left & 1 and 0xA0 <= tag < 0xC0:
            more = _name(bytes(body[at : at + width]), names)
        total += more
        at += width


def _row_length(body: Buffer, at: int, count: int) -> int:
    """How many numbers follow one another there that have the same length."""
    tags = bytes(body[at : at + _WIDTH[body[at]] * count : _WIDTH[body[at]]])
    return len(tags) - len(tags.lstrip(_ROW[body[at]]))


def _name(name: bytes, names: set[bytes]) -> int:
    """What a key takes that is a short text."""
    if name in names:
        return 0
    if len(names) < NAMES_MAX:
        names.add(name)
    return NAME + TEXT + len(name)


def _opened(body: Buffer, at: int, depth: int) -> tuple[int, int, int, bool, int]:
    """Begin a long text, bytes, a list, a dict or a tuple.

    Where its items start, what it takes, how many there are, whether it is a dict, and where it
    ends, or -1.
    """
    tag = body[at]
    length, start = _begin(body, at, tag)
    if 0xD9 <= tag <= 0xDB:
        return start + length, TEXT + length, 0, False, -1
    if 0xC4 <= tag <= 0xC6:
        return start + length, BYTES + length, 0, False, -1
    if depth > DEPTH_MAX:
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
    if tag <= 0x8F or tag >= 0xDE:
        return start, DICT + _table(length), 2 * length, True, -1
    if tag <= 0x9F or tag in (0xDC, 0xDD):
        return start, LIST + SLOT * length, length, False, -1
    if body[start] != TUPLE:
        raise ValueError(f"unknown extension type {body[start]}")
    tag = body[start + 1]
    if not (0x90 <= tag <= 0x9F or 0xDC <= tag <= 0xDD):
        raise ValueError("a tuple is packed as a list")
    items, at = _begin(body, start + 1, tag)
    more = TUPLE_MORE + length + LIST + SLOT * items
    return at, more, items, False, start + 1 + length


def _begin(body: Buffer, at: int, tag: int) -> tuple[int, int]:
    """The length that the beginning of an item tells, and where what follows it starts."""
    if 0x80 <= tag <= 0x9F:
        return tag & 15, at + 1
    if tag in _FIXED_EXTENSION:
        return _FIXED_EXTENSION[tag], at + 1
    if tag not in _LENGTH_BYTES:
        raise ValueError(f"nothing begins with {tag:#x}")
    start = at + 1 + _LENGTH_BYTES[tag]
    return int.from_bytes(body[at + 1 : start], "big"), start


def _table(pairs: int) -> int:
    if pairs <= SMALL_DICT_MAX:
        return SMALL_DICT if pairs else 0
    return pairs * (PAIR if pairs < LARGE_DICT_MIN else LARGE_PAIR)


def _too_much(size: int, allowed: int) -> ValueError:
    return ValueError(
        f"it has too many small items: its {size:,} bytes would take more than the {allowed:,} "
        "bytes of memory that they may; divide it, or store numbers as an array, or all as bytes"
    )
