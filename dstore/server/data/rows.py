"""One key and its value as a row of the database, with the sums that show damage.

SQLite's pages have no checksums, so each row has two sums of its own. The *head* is the key, the
token and the deadline; the *value* is the key, the codec and the body. So a change of the deadline
need not read the value. Both sums contain the key: if either is right then the key is. An old
version of a whole page, which a disk may return after it has lost a write, cannot be seen.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

from blake3 import blake3

from dstore.core.engine import NO_DEADLINE, Kept
from dstore.protocol.keys import from_bytes
from dstore.protocol.messages import Buffer, Large, Stored

TOKEN_BYTES = 16
VALUE_SUM_BYTES = 8
JOINED_MAX = 1 << 16
"""Bodies of at most this many bytes are copied to be hashed, which is faster than two updates."""

_new: Any = tuple.__new__  # makes a NamedTuple in half the time
_pack_head = struct.Struct(">dI").pack
_pack_value = struct.Struct(">qII").pack


class Row(NamedTuple):
    """The columns of a row, in their order.

    ``size`` is None for a small value. For a large one ``body`` is its digest. ``deadline`` is None
    for a key that does not expire.
    """

    key: bytes
    token: bytes
    codec: str | bytes
    size: int | None
    body: Buffer
    deadline: float | None
    head_sum: int
    value_sum: bytes


class KeyUnreadable(Exception):
    """Neither sum of a row is right, so it is not known which key it is of."""


def row_of(key: bytes, stored: Stored, deadline: float) -> Row:
    """Return the row of a value. Raises an exception of Python if it cannot be written."""
    if len(stored.token) != TOKEN_BYTES:
        raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(stored.token)}")
    body, size = stored.body, None
    if type(body) is Large:
        size, body = body.size, body.digest
    assert not isinstance(body, Large)
    if not len(body):
        body = b""  # the address of an empty view may be null, which SQLite takes for NULL
    return Row(
        key,
        stored.token,
        stored.codec,
        size,
        body,
        column_of(deadline),
        head_sum(key, stored.token, deadline),
        value_sum(key, stored.codec.encode("ascii"), size, body),
    )


def column_of(deadline: float) -> float | None:
    if deadline != deadline:  # SQLite takes it for NULL
        raise ValueError("a deadline is not a number")
    return None if deadline == NO_DEADLINE else float(deadline)


def head_sum(key: bytes, token: bytes, deadline: float) -> int:
    return crc32(b"".join((_pack_head(deadline, len(key)), key, token)))


def value_sum(key: bytes, codec: bytes, size: int | None, body: Buffer) -> bytes:
    numbers = _pack_value(-1 if size is None else size, len(key), len(codec))
    if len(body) <= JOINED_MAX:
        hashed = blake3(b"".join((numbers, key, codec, body)))
    else:
        hashed = blake3(b"".join((numbers, key, codec)))
        hashed.update(body)
    return hashed.digest(length=VALUE_SUM_BYTES)


def kept_of(row: tuple[Any, ...]) -> Kept:
    """Return what a row says. Raises KeyUnreadable. Text columns are read as bytes."""
    key, token, codec, size, body, deadline, sum_of_head, sum_of_value = row
    if deadline is None:
        deadline = NO_DEADLINE
    try:  # the types may be wrong, too
        head = head_sum(key, token, deadline) == sum_of_head
    except (TypeError, struct.error):
        head = False
    try:
        value = value_sum(key, codec, size, body) == sum_of_value
    except (TypeError, struct.error):
        value = False
    if head and value and len(token) == TOKEN_BYTES:
        content = body if size is None else Large(size, body)
        stored = _new(Stored, (token, _codec(codec), content))
        kept: Kept = _new(Kept, (from_bytes(key), token, stored, deadline))
        return kept
    if head:
        return Kept(from_bytes(key), token, None, deadline)
    if value:
        return Kept(from_bytes(key), b"", None, NO_DEADLINE)
    raise KeyUnreadable


def kept_of_all(rows: Iterable[tuple[Any, ...]]) -> Iterator[Kept]:
    """Return what each row says, as :func:`kept_of` does. Raises KeyUnreadable.

    The start of a large Global spends most of its time here. So a row of the most frequent kind, a
    small value without a deadline, is compared with its sums in the loop itself.
    """
    for row in rows:
        key, token, codec, size, body, deadline, sum_of_head, sum_of_value = row
        if size is None and deadline is None:
            try:
                head = b"".join((_pack_head(NO_DEADLINE, len(key)), key, token))
                value = b"".join((_pack_value(-1, len(key), len(codec)), key, codec, body))
                sound = (
                    crc32(head) == sum_of_head
                    and blake3(value).digest(length=VALUE_SUM_BYTES) == sum_of_value
                    and len(token) == TOKEN_BYTES
                )
            except (TypeError, struct.error):
                sound = False
            if sound:
                stored = _new(Stored, (token, _codec(codec), body))
                yield _new(Kept, (from_bytes(key), token, stored, NO_DEADLINE))
                continue
        yield kept_of(row)


@functools.lru_cache
def _codec(name: bytes) -> str:
    """Return the name of a codec as a text: the same object for all values."""
    return name.decode("ascii")
