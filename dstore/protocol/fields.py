"""The fields of messages: how each kind of field is checked and read, for the tables in wire.py.

A *check* takes an unpacked field and returns it, or raises BadMessage. A field that may be a list
or a table has a *read* as well, which reads it step by step from a :class:`~unpacking.Frame`, so
that nothing large is made before it is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from math import inf
from typing import Any, NamedTuple, TypeVar

from dstore.config import (
    CHUNK_BYTES_MAX,
    KEY_BYTES_MAX,
    KEYS_PER_MESSAGE_MAX,
    LABEL_MAX,
    SIZE_MAX,
    TTL_MAX,
)
from dstore.errors import BadMessage
from dstore.protocol.clusters import CLUSTER_BYTES
from dstore.protocol.keys import key_bytes
from dstore.protocol.messages import (
    TOKEN_BYTES,
    Body,
    Buffer,
    DelResult,
    DelStatus,
    ExpireStatus,
    Found,
    GetReply,
    Key,
    Large,
    MapReply,
    Offer,
    Offered,
    SetItem,
    SetResult,
    SetStatus,
    Stored,
)
from dstore.protocol.offers import DIGEST_BYTES
from dstore.protocol.partitions import BITMAP_BYTES, MEMBERS_MAX, NOBODY, PARTITIONS
from dstore.protocol.unpacking import LISTS, NIL, TEXT_BYTES_MAX, Frame, check_length

CODEC_NAME_MAX = 64
"""Characters of a codec's name."""
SPAN_MAX = 1e9
"""Seconds that a message may name, such as a lease or a timeout: some 30 years."""
ASCII_KEY_SAFE = KEY_BYTES_MAX // 4  # a text of so few characters is short enough in any case

CODECS = {name: name for name in ("bytes", "text", "msgpack", "ndarray", "pickle")}
"""Names that most messages have: all share one text for each, which needs no check."""

T = TypeVar("T")
E = TypeVar("E", bound=IntEnum)
N = TypeVar("N", bound=NamedTuple)
Check = Callable[[Any], Any]
Read = Callable[[Frame], Any]

_READS: dict[Check, Read] = {}
"""The reads of the checks whose fields may be lists or tables."""


def read(check: Check, frame: Frame) -> Any:
    """Read and check the next field of a frame, step by step. Raises BadMessage."""
    step_by_step = _READS.get(check)
    return check(frame.one()) if step_by_step is None else step_by_step(frame)


def shown(field: Any) -> str:
    """Return a field for an error message. A stranger's field may be huge or deeply nested."""
    if isinstance(field, (int, float)) or (isinstance(field, (str, bytes)) and len(field) < 40):
        return repr(field)
    return f"a {type(field).__name__}"


# ---- numbers and texts ------------------------------------------------------------------------


def uint(field: Any) -> int:
    if type(field) is not int or field < 0:
        raise BadMessage(f"expected a number of at least 0, got {shown(field)}")
    return field


def boolean(field: Any) -> bool:
    if type(field) is not bool:
        raise BadMessage(f"expected true or false, got {shown(field)}")
    return field


def span(field: Any) -> float:
    if type(field) not in (float, int) or not 0 < field < SPAN_MAX:
        raise BadMessage(f"expected a span of time in seconds, got {shown(field)}")
    return float(field)


def lifetime(field: Any) -> float:
    if type(field) not in (float, int) or not 0 < field <= TTL_MAX:
        raise BadMessage(f"expected a time to live in seconds, got {shown(field)}")
    return float(field)


def remainder(field: Any) -> float:
    if type(field) not in (float, int) or not 0 <= field < inf:
        raise BadMessage(f"expected seconds from 0 on, got {shown(field)}")
    return float(field)


def text(field: Any) -> str:
    if type(field) is not str or len(field) > TEXT_BYTES_MAX:
        raise BadMessage(f"expected text, got {shown(field)}")
    return field


def label(field: Any) -> str:
    if len(text(field)) > LABEL_MAX:
        raise BadMessage(f"a label has at most {LABEL_MAX} characters")
    return str(field)


def key(field: Any) -> Key:
    if type(field) is not str or not field:
        raise BadMessage(f"expected a key, got {shown(field)}")
    if len(field) > ASCII_KEY_SAFE and key_bytes(field) > KEY_BYTES_MAX:
        raise BadMessage(f"a key has at most {KEY_BYTES_MAX} bytes, this one {key_bytes(field)}")
    return field


def key_or_none(field: Any) -> Key:
    """The check of a key that is "" for who does not see it."""
    return "" if type(field) is str and not field else key(field)


def exactly(length: int, expected: str) -> Callable[[Any], bytes]:
    def checked(field: Any) -> bytes:
        if type(field) is not bytes or len(field) != length:
            raise BadMessage(f"expected {expected}, got {shown(field)}")
        return field

    return checked


def code(kind: type[E]) -> Callable[[Any], E]:
    members = {int(member): member for member in kind}

    def checked(field: Any) -> E:
        member = members.get(uint(field))
        if member is None:
            raise BadMessage(f"unknown code {shown(field)}")
        return member

    return checked


# ---- lists, records and tables ----------------------------------------------------------------


def listed(
    check: Callable[[Any], T], least: int = 0, most: int = KEYS_PER_MESSAGE_MAX
) -> Callable[[Any], list[T]]:
    """Make the check of a list of ``least`` to ``most`` items."""

    def checked(field: Any) -> list[T]:
        if type(field) is not list:
            raise BadMessage(f"expected a list, got {shown(field)}")
        check_length(len(field), least, most)
        return [check(item) for item in field]

    def step_by_step(frame: Frame) -> list[T]:
        length = frame.length(least, most)
        if check not in _READS:
            return [check(item) for item in frame.some(length)]
        items: list[T] = []
        for piece in frame.pieces(length):
            items += [read(check, piece)] if isinstance(piece, Frame) else map(check, piece)
        return items

    _READS[checked] = step_by_step
    return checked


def optional(check: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Make the check of a field that may be None."""

    def checked(field: Any) -> T | None:
        return None if field is None else check(field)

    def step_by_step(frame: Frame) -> T | None:
        return frame.one() if frame.begins(NIL) else read(check, frame)  # type: ignore[no-any-return]

    _READS[checked] = step_by_step
    return checked


def record(kind: type[N], *checks: Check) -> Callable[[Any], N]:
    """Make the check of a NamedTuple, given the checks of its fields."""
    make = kind._make

    def checked(field: Any) -> N:
        if type(field) is not list or len(field) != len(checks):
            raise BadMessage(f"expected a record of {len(checks)} fields, got {shown(field)}")
        return make([check(item) for check, item in zip(checks, field)])

    def step_by_step(frame: Frame) -> N:
        frame.length(len(checks), len(checks))
        return make([read(check, frame) for check in checks])

    _READS[checked] = step_by_step
    return checked


def metrics(field: Any) -> dict[str, object]:
    if type(field) is not dict or not all(type(name) is str for name in field):
        raise BadMessage(f"expected a table of metrics, got {shown(field)}")
    return field


_READS[metrics] = lambda frame: metrics(frame.metrics())


# ---- values -----------------------------------------------------------------------------------


def codec_name(field: Any) -> str:
    name = text(field)
    if not (0 < len(name) <= CODEC_NAME_MAX and name.isascii() and name.isprintable()):
        raise BadMessage(f"the name of a codec is 1 to {CODEC_NAME_MAX} printable ASCII characters")
    return name


def inline(field: Any) -> bytes:
    if type(field) is not bytes:
        raise BadMessage(f"expected bytes, got {shown(field)}")
    return field


def length(most: int, expected: str) -> Callable[[Any], int]:
    def checked(field: Any) -> int:
        if not 1 <= uint(field) <= most:
            raise BadMessage(f"{expected}, not {shown(field)}")
        return int(field)

    return checked


def data(field: Any) -> Buffer:
    """The check of a second frame, which was not packed."""
    if not 1 <= len(field) <= CHUNK_BYTES_MAX:
        raise BadMessage(f"a chunk has 1 to {CHUNK_BYTES_MAX} bytes, not {len(field)}")
    return field  # type: ignore[no-any-return]


chunk_length = length(CHUNK_BYTES_MAX, f"a chunk has 1 to {CHUNK_BYTES_MAX} bytes")
id16 = exactly(16, "16 bytes")
large = record(
    Large,
    length(SIZE_MAX, "a large value has at least one byte"),
    exactly(32, "a digest of 32 bytes"),
)


def body(field: Any) -> Body:
    return field if type(field) is bytes else large(field)


_READS[body] = lambda frame: read(large if frame.begins(LISTS) else inline, frame)
_any_stored = record(Stored, id16, codec_name, body)


def stored(field: Any) -> Stored:
    """The check of a value, with a fast path for small ones, which most replies have."""
    if type(field) is list and len(field) == 3:
        token, codec, content = field
        if type(content) is bytes and type(token) is bytes and len(token) == 16:
            name = CODECS.get(codec) if type(codec) is str else None
            return Stored(token, name or codec_name(codec), content)
    return _any_stored(field)


_READS[stored] = _READS[_any_stored]
upload = record(Stored, id16, codec_name, large)
_any_found = optional(record(Found, uint, boolean, stored))


def found(field: Any) -> Found | None:
    """The check of a value in a reply, with a fast path for well-formed input."""
    if type(field) is list and len(field) == 3:
        seq, cacheable, value = field
        if type(seq) is int and seq >= 0 and type(cacheable) is bool:
            return Found._make((seq, cacheable, stored(value)))
    return _any_found(field)


_READS[found] = _READS[_any_found]


_any_set_item = record(SetItem, key, stored)


def set_item(field: Any) -> SetItem:
    """The check of an item of a SET, with a fast path for well-formed input."""
    if type(field) is list and len(field) == 2:
        name, value = field
        return SetItem(key(name), stored(value))
    return _any_set_item(field)


_READS[set_item] = _READS[_any_set_item]


# ---- the columns of a reply to GET --------------------------------------------------------------


def column(check: Callable[[list[Any]], list[T]]) -> Callable[[Any], list[T]]:
    """Make the check of a list without lists in it, which ``check`` looks at as a whole."""

    def checked(field: Any) -> list[T]:
        if type(field) is not list:
            raise BadMessage(f"expected a list, got {shown(field)}")
        check_length(len(field), 0, KEYS_PER_MESSAGE_MAX)
        return check(field)

    _READS[checked] = lambda frame: check(frame.some(frame.length(0, KEYS_PER_MESSAGE_MAX)))
    return checked


def _codec_or_none(field: Any) -> str:
    return "" if type(field) is str and not field else CODECS.get(field) or codec_name(field)


def _codecs(names: list[Any]) -> list[str]:
    first = names[0] if names else ""
    if type(first) is str and names.count(first) == len(names):  # as in most replies
        return [_codec_or_none(first)] * len(names)
    try:
        checked = {name: _codec_or_none(name) for name in set(names)}
    except TypeError:  # a list cannot be in a set
        raise BadMessage("the name of a codec is text") from None
    return [checked[name] for name in names]


def _indexes(numbers: list[Any]) -> list[int]:
    if len({uint(number) for number in numbers}) != len(numbers):
        raise BadMessage("an index comes twice")
    return numbers


codecs = column(_codecs)
indexes = column(_indexes)
_any_bodies = listed(optional(body))


def bodies(field: Any) -> list[Body | None]:
    """The check of bodies, with a fast path for small values alone."""
    if type(field) is list and len(field) <= KEYS_PER_MESSAGE_MAX:
        for content in field:
            if type(content) is not bytes:
                break
        else:
            return field
    return _any_bodies(field)


_READS[bodies] = _READS[_any_bodies]


def check_columns(reply: GetReply) -> None:
    """Raise BadMessage unless the columns of a reply fit together."""
    codecs, bodies, uncacheable = reply.codecs, reply.bodies, reply.uncacheable
    count = len(bodies)
    if len(codecs) != count or len(reply.tokens) != TOKEN_BYTES * count:
        raise BadMessage("the columns have different lengths")
    if ("" in codecs or None in bodies) and [name == "" for name in codecs] != [
        content is None for content in bodies
    ]:
        raise BadMessage("a value has no codec, or a codec no value")
    if uncacheable and max(uncacheable) >= count:
        raise BadMessage(f"there is no value {max(uncacheable):,} among {count:,}")


def check_offer(offer: Offer) -> None:
    """Raise BadMessage unless there is a digest for each key."""
    if len(offer.digests) != DIGEST_BYTES * len(offer.keys):
        raise BadMessage("an offer has a digest of 16 bytes for each key")


def check_offered(reply: Offered) -> None:
    """Raise BadMessage unless there is a token for each key that is named."""
    if len(reply.tokens) != TOKEN_BYTES * len(reply.same):
        raise BadMessage("there is a token of 16 bytes for each value that is the same")


def check_map(reply: MapReply) -> None:
    """Raise BadMessage unless each partition has an owner that is named, or nobody."""
    if not reply.members and not reply.owners:
        return  # there is no cluster
    if len(reply.owners) != PARTITIONS:
        raise BadMessage(f"a map has the owners of {PARTITIONS} partitions")
    if any(len(reply.members) <= owner != NOBODY for owner in reply.owners):
        raise BadMessage("a map has an owner that is no member")


# ---- further lists ------------------------------------------------------------------------------

keys = listed(key, 1)
members = listed(text, most=MEMBERS_MAX)
_bitmap = exactly(BITMAP_BYTES, f"a bit for each of {PARTITIONS} partitions")


def partitions(field: Any) -> bytes:
    """The check of the bits of some partitions; without any bytes, of all."""
    return field if type(field) is bytes and not field else _bitmap(field)


_id_of_cluster = exactly(CLUSTER_BYTES, f"{CLUSTER_BYTES} bytes, the id of a cluster, or none")


def cluster(field: Any) -> bytes:
    """The check of the id of a cluster; without any bytes, of none."""
    return field if type(field) is bytes and not field else _id_of_cluster(field)


_set_status = code(SetStatus)
_any_set_result = record(SetResult, _set_status, uint, boolean, found, uint, uint)


def set_result(field: Any) -> SetResult:
    """The check of an outcome of a SET, with a fast path for well-formed input."""
    if type(field) is list and len(field) == 6:
        status, seq, cacheable, value, confirmed, expired = field
        if (
            type(seq) is type(confirmed) is type(expired) is int
            and seq >= 0
            and confirmed >= 0
            and expired >= 0
            and type(cacheable) is bool
        ):
            held = None if value is None else found(value)
            return SetResult(_set_status(status), seq, cacheable, held, confirmed, expired)
    return _any_set_result(field)


_READS[set_result] = _READS[_any_set_result]
del_result = record(DelResult, code(DelStatus), uint, uint, uint, uint)
expire_result = code(ExpireStatus)
ttl = optional(lifetime)
ttl_left = optional(remainder)
ENVELOPE = (uint, uint, uint)
"""The checks of epoch, session and request."""
