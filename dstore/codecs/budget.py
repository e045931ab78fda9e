"""The memory that a packed value takes when it is decoded, computed without decoding it.

Any client may have stored a value, and its readers build it. One byte of msgpack can be an empty
list, which takes 64 bytes, and 8 in the list that it is in: so 8 MiB became 611 MiB, once for each
reader. The memory of a value is therefore bounded by its packed size. A value that would take more
is refused by its readers, and by its writer, so that a value which cannot be read is not stored.
The bound is far above what programs store:

============================================  ==============================
items                                         bytes in memory for one packed
============================================  ==============================
numbers, records with some text                3 to 15
short words, pairs of small numbers           12 to 30
an empty list or dict; a dict with one item   72 to 100
============================================  ==============================

The packed value is scanned item by item, and the memory of each in Python is added up (3.10 to
3.14, 64 bits, as the allocator rounds it up). Runs of numbers are counted thousands at a time.
"""

from __future__ import annotations

from dstore.config import DECODED_FACTOR, DECODED_FREE
from dstore.protocol.messages import Buffer

CHECKED_MIN = 64 << 10
"""Bytes of a value that has to be checked; a smaller one takes less than DECODED_FREE."""
DEPTH_MAX = 100
"""Levels of lists, tuples and dicts inside one another."""
TUPLE = 1
"""The msgpack extension type of a tuple: the packed list of its items."""

# Bytes of memory of an item, without its slot in the list or dict that contains it.
SLOT = 8
LIST, DICT, NUMBER, TEXT, BYTES = 64, 64, 32, 64, 48
TUPLE_MORE = 64
"""Bytes that a tuple takes while it is made, in addition to a list of its items."""
SMALL_DICT, SMALL_DICT_MAX = 176, 5
"""Bytes of the table of a small dict, and how many items that may have."""
PAIR, LARGE_PAIR, LARGE_DICT_MIN = 56, 160, 1000
"""Bytes per item of a larger dict, and of one with LARGE_DICT_MIN items or more, which may be made
from a list of its items.
"""
FIRST_KEY = 64
"""Bytes that the first of equal text keys takes beside its text. The others are the same object."""
KEYS_MAX = 4096
"""Different text keys that are remembered, so that equal ones are counted once."""

RUN_MAX = 4096
"""Numbers that are counted together."""
RUN_MIN = 32
"""Items of a list for which it is worth looking for runs."""
RUN_RETRY_BYTES = 1024
"""Bytes after a run that was cut short in which no other is looked for."""
RUNS = (
    (1, 0, (*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xFB, 0x100))),  # Python has one object for each
    (1, NUMBER, range(0xE0, 0xFB)),
    (1, LIST, (0x80, 0x90)),  # without items; DICT has the same number
    (2, NUMBER, (0xCC, 0xD0)),
    (3, NUMBER, (0xCD, 0xD1)),
    (5, NUMBER, (0xCA, 0xCE, 0xD2)),
    (9, NUMBER, (0xCB, 0xCF, 0xD3)),
)
"""Kinds of items of one length: their packed bytes, the memory of each, and their first bytes."""
_RUN: list[bytes] = [b""] * 256
_WIDTH = [0] * 256  # packed bytes by first byte; 0 is neither a number nor a short text
_MEMORY = [0] * 256
for _width, _memory, _tags in RUNS:
    for _tag in _tags:
        _WIDTH[_tag], _MEMORY[_tag], _RUN[_tag] = _width, _memory, bytes(_tags)
for _tag in range(0xA0, 0xC0):
    _WIDTH[_tag], _MEMORY[_tag] = 1 + (_tag & 31), TEXT + (_tag & 31)
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_LENGTH_BYTES |= {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_FIXED_EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def check(body: Buffer) -> None:
    """Raise ValueError if a packed value would take too much memory, is nested too deeply or is
    malformed.
    """
    allowed = DECODED_FACTOR * len(body) + DECODED_FREE
    try:
        decoded_size(body, allowed)
    except IndexError:
        raise ValueError("it ends too early") from None


def decoded_size(body: Buffer, allowed: int) -> int:
    """The bytes of memory that a value takes.

    Raises ValueError if they are more than ``allowed`` or the value is malformed, and IndexError if
    the body ends too early.
    """
    at = total = retry_at = 0
    # Items left of the innermost list or dict (keys and values both count), and where it ends.
    left, is_dict, end = 1, False, len(body)
    outer: list[tuple[int, bool, int]] = []
    keys: set[bytes] = set()
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
        if left > RUN_MIN and at >= retry_at and _RUN[tag]:
            count = min(left, RUN_MAX)
            run = _run_length(body, at, count)
            at += run * width
            total += run * _MEMORY[tag]
            left -= run
            if run < count:
                retry_at = at + RUN_RETRY_BYTES
            continue
        left -= 1
        if not width:
            outer.append((left, is_dict, end))
            at, more, left, is_dict, end = _open(body, at, len(outer))
            total += more
            continue
        more = _MEMORY[tag]
        if is_dict and left & 1 and 0xA0 <= tag < 0xC0:
            more = _key(bytes(body[at : at + width]), keys)
        total += more
        at += width


def _run_length(body: Buffer, at: int, count: int) -> int:
    """How many of the next ``count`` items are of the same kind as the first."""
    tags = bytes(body[at : at + _WIDTH[body[at]] * count : _WIDTH[body[at]]])
    return len(tags) - len(tags.lstrip(_RUN[body[at]]))


def _key(key: bytes, keys: set[bytes]) -> int:
    """The memory of a short text key. ``keys`` are those that were met before."""
    if key in keys:
        return 0
    if len(keys) < KEYS_MAX:
        keys.add(key)
    return FIRST_KEY + TEXT + len(key)


def _open(body: Buffer, at: int, depth: int) -> tuple[int, int, int, bool, int]:
    """Read the beginning of a long text, bytes, a list, a dict or a tuple.

    Returns where its items start, its memory, the number of items, whether it is a dict, and where
    it ends (-1 if that is not given).
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
    """The length in the beginning of an item, and the position after that beginning."""
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
