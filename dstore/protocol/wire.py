"""Messages to frames and back: the only user of msgpack on the wire.

A frame is ``b"dS"``, one byte of protocol version, and one msgpack array: the number of the
operation, then the fields of the message in their order in :mod:`dstore.messages`. The ``data`` of
a chunk is not packed: it is a second frame, so that it is copied nowhere on its way. Decoding
checks the type and the bounds of every field, since a frame may come from anybody: whatever is
wrong with it, the one exception is BadMessage.

A small frame without long lists, as nearly all are, is unpacked as a whole and then checked. Any
other is read step by step, by the same table of fields: see :mod:`dstore.protocol.unpacking`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from msgpack import Packer, unpackb

from dstore.config import (
    CHUNK_BYTES_MAX,
    KEY_BYTES_MAX,
    KEYS_PER_MESSAGE_MAX,
    LABEL_MAX,
    LOG_LENGTH_MAX,
)
from dstore.errors import BadMessage
from dstore.protocol.messages import (
    Ack,
    Body,
    Broadcast,
    Buffer,
    Chunk,
    Committed,
    Del,
    DelReply,
    DelResult,
    DelStatus,
    Farewell,
    Fetch,
    Found,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Key,
    Large,
    Message,
    Refusal,
    Refused,
    Scan,
    ScanReply,
    Set,
    SetItem,
    SetReply,
    SetResult,
    SetStatus,
    Stage,
    Staged,
    Stats,
    StatsReply,
    Stored,
    Sync,
    Synced,
    ToGlobal,
    ToLocal,
    Unstage,
    Unwait,
    Wait,
    Welcome,
)
from dstore.protocol.unpacking import (
    LISTS,
    NIL,
    QUICK_BYTES_MAX,
    QUICK_ITEMS_MAX,
    TEXT_BYTES_MAX,
    Frame,
    check_length,
    unpacked,
)

MAGIC = b"dS"
VERSION = 5
PREFIX = MAGIC + bytes([VERSION])

CODEC_NAME_MAX = 64
COPIED_QUICKLY = 4096
"""A frame of fewer bytes is copied more quickly than it is viewed."""
PACKED_USUALLY = 1024
"""Bytes that are reserved to pack a message; more are taken when it needs them."""
FIELDS_MAX = 15
"""Fields of a message, and its number."""
PUBLISHED_MAX = LOG_LENGTH_MAX + KEYS_PER_MESSAGE_MAX
"""Keys, and tokens, of one publication: no more are kept for it than the log has, and those of one
message come on top.
"""
_ASCII_KEY_SAFE = KEY_BYTES_MAX // 4  # so few characters fit whatever they are

_CODECS = {name: name for name in ("bytes", "text", "msgpack", "ndarray", "pickle")}
"""Names that come in most messages: one text for all, which needs no check."""

T = TypeVar("T")
N = TypeVar("N", bound=NamedTuple)
Check = Callable[[Any], Any]
Read = Callable[[Frame], Any]


class OtherVersion(BadMessage):
    """The frame is dstore's, of a protocol version that this program does not speak."""


class Malformed(BadMessage):
    """The frame is dstore's but its fields are wrong. Says who to answer, as far as is known."""

    epoch = 0
    session = 0
    request = 0


def key_bytes(key: Key) -> int:
    """The length of a key in bytes."""
    return len(key) if key.isascii() else len(key.encode("utf-8", "surrogateescape"))


def _shown(field: Any) -> str:
    """A field for an error message. What a stranger sent may be huge, or nested without end."""
    if isinstance(field, (int, float)) or (isinstance(field, (str, bytes)) and len(field) < 40):
        return repr(field)
    return f"a {type(field).__name__}"


# ---- the fields -------------------------------------------------------------------------------

_READS: dict[Check, Read] = {}
"""How a field is read, and checked, step by step, that may be a list or a table."""


def _read(check: Check, frame: Frame) -> Any:
    read = _READS.get(check)
    return check(frame.one()) if read is None else read(frame)


def _uint(field: Any) -> int:
    if type(field) is not int or field < 0:
        raise BadMessage(f"expected a number of at least 0, got {_shown(field)}")
    return field


def _bool(field: Any) -> bool:
    if type(field) is not bool:
        raise BadMessage(f"expected true or false, got {_shown(field)}")
    return field


def _span(field: Any) -> float:
    if type(field) not in (float, int) or not 0 < field < 1e9:
        raise BadMessage(f"expected a span of time in seconds, got {_shown(field)}")
    return float(field)


def _text(field: Any) -> str:
    if type(field) is not str or len(field) > TEXT_BYTES_MAX:
        raise BadMessage(f"expected text, got {_shown(field)}")
    return field


def _label(field: Any) -> str:
    if len(_text(field)) > LABEL_MAX:
        raise BadMessage(f"a label has at most {LABEL_MAX} characters")
    return str(field)


def _key(field: Any) -> Key:
    if type(field) is not str or not field:
        raise BadMessage(f"expected a key, got {_shown(field)}")
    if len(field) > _ASCII_KEY_SAFE and key_bytes(field) > KEY_BYTES_MAX:
        raise BadMessage(f"a key has at most {KEY_BYTES_MAX} bytes, this one {key_bytes(field)}")
    return field


def _id16(field: Any) -> bytes:
    if type(field) is not bytes or len(field) != 16:
        raise BadMessage(f"expected 16 bytes, got {_shown(field)}")
    return field


def _list(check: Callable[[Any], T], most: int, least: int = 0) -> Callable[[Any], list[T]]:
    def checked(field: Any) -> list[T]:
        if type(field) is not list:
            raise BadMessage(f"expected a list, got {_shown(field)}")
        check_length(len(field), least, most)
        return [check(item) for item in field]

    def read(frame: Frame) -> list[T]:
        length = frame.length(least, most)
        if check not in _READS:
            return [check(item) for item in frame.some(length)]
        items: list[T] = []
        for piece in frame.pieces(length):
            items += [_read(check, piece)] if isinstance(piece, Frame) else map(check, piece)
        return items

    _READS[checked] = read
    return checked


def _batch(check: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    return _list(check, KEYS_PER_MESSAGE_MAX, 1)


def _optional(check: Callable[[Any], T]) -> Callable[[Any], T | None]:
    def checked(field: Any) -> T | None:
        return None if field is None else check(field)

    def read(frame: Frame) -> T | None:
        return frame.one() if frame.begins(NIL) else _read(check, frame)  # type: ignore[no-any-return]

    _READS[checked] = read
    return checked


def _record(kind: type[N], *checks: Check) -> Callable[[Any], N]:
    make = kind._make

    def checked(field: Any) -> N:
        if type(field) is not list or len(field) != len(checks):
            raise BadMessage(f"expected a record of {len(checks)} fields, got {_shown(field)}")
        return make([check(item) for check, item in zip(checks, field)])

    def read(frame: Frame) -> N:
        frame.length(len(checks), len(checks))
        return make([_read(check, frame) for check in checks])

    _READS[checked] = read
    return checked


def _enum(kind: Callable[[int], T]) -> Callable[[Any], T]:
    def checked(field: Any) -> T:
        try:
            return kind(_uint(field))
        except ValueError:
            raise BadMessage(f"unknown code {_shown(field)}") from None

    return checked


def _metrics(field: Any) -> dict[str, object]:
    if type(field) is not dict or not all(type(name) is str for name in field):
        raise BadMessage(f"expected a table of metrics, got {_shown(field)}")
    return field


_READS[_metrics] = lambda frame: _metrics(frame.metrics())


def _codec(field: Any) -> str:
    name = _text(field)
    if not (0 < len(name) <= CODEC_NAME_MAX and name.isascii() and name.isprintable()):
        raise BadMessage(f"the name of a codec is 1 to {CODEC_NAME_MAX} printable ASCII characters")
    return name


def _inline(field: Any) -> bytes:
    if type(field) is not bytes:
        raise BadMessage(f"expected bytes, got {_shown(field)}")
    return field


def _body(field: Any) -> Body:
    return field if type(field) is bytes else _large(field)


def _digest(field: Any) -> bytes:
    if type(field) is not bytes or len(field) != 32:
        raise BadMessage(f"expected a digest of 32 bytes, got {_shown(field)}")
    return field


def _size(field: Any) -> int:
    if not 1 <= _uint(field) < 1 << 62:
        raise BadMessage(f"a large value has at least one byte, not {_shown(field)}")
    return int(field)


def _length(field: Any) -> int:
    if not 1 <= _uint(field) <= CHUNK_BYTES_MAX:
        raise BadMessage(f"a chunk has 1 to {CHUNK_BYTES_MAX} bytes, not {_shown(field)}")
    return int(field)


def _data(field: Any) -> Buffer:
    if not 1 <= len(field) <= CHUNK_BYTES_MAX:
        raise BadMessage(f"a chunk has 1 to {CHUNK_BYTES_MAX} bytes, not {len(field)}")
    return field  # type: ignore[no-any-return]


_keys = _batch(_key)
_large = _record(Large, _size, _digest)
_READS[_body] = lambda frame: _read(_large if frame.begins(LISTS) else _inline, frame)
_any_stored = _record(Stored, _id16, _codec, _body)


def _stored(field: Any) -> Stored:
    """A value. What most replies have, a small one, is looked at more quickly."""
    if type(field) is list and len(field) == 3:
        token, codec, body = field
        if type(body) is bytes and type(token) is bytes and len(token) == 16:
            name = _CODECS.get(codec) if type(codec) is str else None
            return Stored(token, name or _codec(codec), body)
    return _any_stored(field)


_READS[_stored] = _READS[_any_stored]
_upload = _record(Stored, _id16, _codec, _large)
_any_found = _optional(_record(Found, _uint, _bool, _stored))


def _found(field: Any) -> Found | None:
    """The same of what is found."""
    if type(field) is list and len(field) == 3:
        seq, cacheable, stored = field
        if type(seq) is int and seq >= 0 and type(cacheable) is bool:
            return Found._make((seq, cacheable, _stored(stored)))
    return _any_found(field)


_READS[_found] = _READS[_any_found]

_set_result = _record(SetResult, _enum(SetStatus), _uint, _bool, _found, _uint, _uint)
_del_result = _record(DelResult, _enum(DelStatus), _uint, _uint, _uint, _uint)
_asked = (_uint, _uint, _uint)  # epoch, session, request

# ---- the messages -----------------------------------------------------------------------------

_TO_GLOBAL: dict[int, tuple[type[ToGlobal], tuple[Check, ...]]] = {
    1: (Hello, (_id16, _uint, _uint, _label)),
    2: (Sync, (_uint, _uint, _uint, _uint, _uint, _bool)),
    3: (Ack, (_uint, _uint, _uint)),
    4: (Goodbye, (_uint, _uint)),
    5: (Get, (*_asked, _keys)),
    6: (Set, (*_asked, _uint, _uint, _bool, _batch(_record(SetItem, _key, _stored)))),
    7: (Del, (*_asked, _uint, _uint, _bool, _keys)),
    8: (Scan, (*_asked, _text, _text, _uint)),
    9: (Stats, _asked),
    10: (Fetch, (*_asked, _id16, _uint, _length)),
    11: (Stage, (*_asked, _upload, _uint, _data)),
    12: (Unstage, (_uint, _uint, _id16)),
    13: (Wait, (*_asked, _key, _span)),
    14: (Unwait, (*_asked, _key)),
}

_TO_LOCAL: dict[int, tuple[type[ToLocal], tuple[Check, ...]]] = {
    65: (Welcome, (_uint, _uint, _id16, _uint, _span, _text, _uint, _uint)),
    66: (
        Synced,
        (_uint, _uint, _uint, _uint, _uint, _optional(_list(_key, LOG_LENGTH_MAX)), _bool, _uint),
    ),
    67: (Farewell, (_uint, _uint)),
    68: (GetReply, (*_asked, _list(_found, KEYS_PER_MESSAGE_MAX))),
    69: (SetReply, (*_asked, _list(_set_result, KEYS_PER_MESSAGE_MAX))),
    70: (DelReply, (*_asked, _list(_del_result, KEYS_PER_MESSAGE_MAX))),
    71: (ScanReply, (*_asked, _list(_key, KEYS_PER_MESSAGE_MAX), _text)),
    72: (StatsReply, (*_asked, _metrics)),
    73: (Refused, (*_asked, _enum(Refusal), _text)),
    74: (
        Broadcast,
        (_uint, _uint, _list(_key, PUBLISHED_MAX), _bool, _list(_id16, PUBLISHED_MAX)),
    ),
    75: (Chunk, (*_asked, _id16, _uint, _data)),
    76: (Staged, (*_asked, _id16, _uint, _uint)),
    77: (Committed, (_uint, _uint)),
}

_Table = dict[int, tuple[type[Any], tuple[Check, ...]]]

_NUMBER: dict[type[Message], int] = {
    kind: number for number, (kind, _) in (*_TO_GLOBAL.items(), *_TO_LOCAL.items())
}


_WITH_DATA = (Stage, Chunk)
_NUMBERS_WITH_DATA = [bytes([_NUMBER[kind]]) for kind in _WITH_DATA]


def encode(message: Message) -> bytes:
    """The frame of a message; of one with data the first frame, which tells the data's length."""
    fields: tuple[object, ...] = message
    if type(message) in _WITH_DATA:
        fields = (*message[:-1], len(data_of(message) or b""))
    packer = Packer(unicode_errors="surrogateescape", buf_size=PACKED_USUALLY)
    packed: bytes = packer.pack((_NUMBER[type(message)], *fields))
    return PREFIX + packed


def topic(kind: type[Broadcast | Committed]) -> bytes:
    """What the frames of these messages begin with, and no others: to subscribe to them."""
    number, (_, checks) = _NUMBER[kind], _TO_LOCAL[_NUMBER[kind]]
    return PREFIX + bytes([0x90 | 1 + len(checks), number])


def with_data(frame: bytes) -> bool:
    """Whether a message that begins with this frame has a second one, if it is well-formed."""
    return frame[:3] == PREFIX and frame[4:5] in _NUMBERS_WITH_DATA


def belongs(data: Buffer, frame: bytes) -> bool:
    """Whether ``data`` is the second frame of the message that begins with ``frame``.

    On the way to a Local the two are messages of their own, and when a connection is lost the
    second may be lost alone. What comes next is then another message.
    """
    try:
        fields = unpacked(frame[3:])
        if len(data) != fields[-1]:
            return False
        if data[:3] != PREFIX or len(data) > COPIED_QUICKLY:
            return True
        return bool(unpacked(data[3:])[1:3] != fields[1:3])  # a message to the same Local
    except Exception:  # it is not a message
        return True


def data_of(message: Message) -> Buffer | None:
    """The second frame of a message, if it has one."""
    return message.data if isinstance(message, _WITH_DATA) else None


def decode_to_global(frame: Buffer, data: Buffer | None = None) -> ToGlobal:
    """The message in a frame that a Local sent. Raises BadMessage."""
    message: ToGlobal = _decode(frame, data, _TO_GLOBAL)
    return message


def decode_to_local(frame: Buffer, data: Buffer | None = None) -> ToLocal:
    """The message in a frame that Global sent. Raises BadMessage."""
    message: ToLocal = _decode(frame, data, _TO_LOCAL)
    return message


def _decode(frame: Buffer, data: Buffer | None, table: _Table) -> Any:
    if frame[:3] != PREFIX:
        raise _foreign(frame)
    packed = frame[3:] if len(frame) < COPIED_QUICKLY else memoryview(frame)[3:]
    if len(packed) > QUICK_BYTES_MAX:
        return _read_all(packed, data, table)
    try:
        things = unpackb(  # as frames.unpacked does, a call less
            packed,
            unicode_errors="surrogateescape",
            max_array_len=QUICK_ITEMS_MAX,
            max_map_len=QUICK_ITEMS_MAX,
        )
    except Exception:  # whatever is wrong there; or a list is long
        return _read_all(packed, data, table)
    if type(things) is not list or not things:
        raise BadMessage(f"expected an operation, got {_shown(things)}")
    number, *fields = things
    kind, checks = _lookup(table, number)
    try:
        _check_count(kind, len(fields), len(checks), data)
        if data is not None:
            _check_length(fields[-1], data)
            fields[-1] = data
        return kind._make([check(field) for check, field in zip(checks, fields)])
    except BadMessage as error:
        raise _malformed(kind, fields, error) from None


def _read_all(packed: Buffer, data: Buffer | None, table: _Table) -> Any:
    """The message, read step by step."""
    kind: type[Any] | None = None
    fields: list[Any] = []
    try:
        frame = Frame(packed)
        count = frame.length(1, FIELDS_MAX) - 1
        kind, checks = _lookup(table, frame.one())
        _check_count(kind, count, len(checks), data)
        for check in checks[: count - (data is not None)]:
            fields.append(_read(check, frame))  # noqa: PERF401  # what was read tells who asked
        if data is not None:
            _check_length(frame.one(), data)
            fields.append(checks[-1](data))
        if not frame.ended:
            raise BadMessage("more comes behind it")
        return kind._make(fields)
    except Exception as error:  # whatever msgpack makes of bytes that anybody may have sent
        wrong = error if isinstance(error, BadMessage) else BadMessage(f"unreadable: {error!r}")
        raise wrong if kind is None else _malformed(kind, fields, wrong) from None


def _check_count(kind: type[Any], got: int, expected: int, data: Buffer | None) -> None:
    if (data is not None) != (kind in _WITH_DATA):
        raise BadMessage(f"expected {1 + (kind in _WITH_DATA)} frames")
    if got != expected:
        raise BadMessage(f"expected {expected} fields, got {got}")


def _check_length(length: Any, data: Buffer) -> None:
    if type(length) is not int or length != len(data):
        raise BadMessage(f"expected {_shown(length)} bytes of data, got {len(data)}")


def _foreign(frame: Buffer) -> BadMessage:
    """What to say of a frame that does not begin as ours do."""
    if frame[:2] != MAGIC:
        return BadMessage("not a frame of dstore")
    version = frame[2] if len(frame) > 2 else "none"
    return OtherVersion(f"protocol version {version} is not spoken here, only {VERSION}")


def _lookup(table: _Table, number: Any) -> tuple[type[Any], tuple[Check, ...]]:
    if type(number) is int and number in table:
        return table[number]
    raise BadMessage(f"unknown operation {_shown(number)}")


def _malformed(kind: Any, fields: list[Any], cause: BadMessage) -> Malformed:
    """The error, with the request it answers if the frame's envelope can be read."""
    error = Malformed(f"{kind.__name__.upper()}: {cause}")
    names = ("epoch", "session", "request")
    if kind._fields[:3] == names:
        for name, field in zip(names, fields):
            setattr(error, name, field if type(field) is int and field >= 0 else 0)
    return error
