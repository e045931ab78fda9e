"""Encoding and decoding of messages.

A frame is ``b"dS"``, one byte of protocol version, and one msgpack array: the number of the
operation, then the fields of the message in their order in :mod:`dstore.protocol.messages`. The
``data`` of a chunk is not packed: it is a second frame, so that it is not copied on its way.
Decoding checks the type and the bounds of every field, since any peer may send a frame. Whatever is
wrong with it, the one exception is BadMessage.

A small frame without long lists, as nearly all are, is unpacked as a whole and then checked. Any
other is read step by step, with the same table of fields: see :mod:`dstore.protocol.unpacking`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgpack import Packer, unpackb

from dstore.config import KEYS_PER_MESSAGE_MAX, LOG_LENGTH_MAX
from dstore.errors import BadMessage
from dstore.protocol import fields as f
from dstore.protocol import messages as m
from dstore.protocol.messages import Buffer, Message, ToGlobal, ToLocal
from dstore.protocol.unpacking import QUICK_BYTES_MAX, QUICK_ITEMS_MAX, Frame, unpacked

MAGIC = b"dS"
VERSION = 12
PREFIX = MAGIC + bytes([VERSION])

COPIED_QUICKLY = 4096
"""A frame of fewer bytes is faster to copy than to view."""
PACKED_USUALLY = 1024
"""Bytes that are reserved to pack a message; a message that needs more gets more."""
FIELDS_MAX = 15
"""Fields of a message, its number included."""
BROADCAST_MAX = LOG_LENGTH_MAX + KEYS_PER_MESSAGE_MAX
"""Keys, and tokens, of one broadcast. No more are kept for it than the log has, and those of one
message are added.
"""


class OtherVersion(BadMessage):
    """The frame is of a version of the protocol that this program does not know."""


class Malformed(BadMessage):
    """The frame is of dstore but its fields are wrong.

    ``envelope`` has the epoch, session and request that the answer is to name; 0 is unknown.
    """

    envelope = (0, 0, 0)


# ---- the messages -----------------------------------------------------------------------------

_ITEMS = f.listed(f.set_item, 1)
_LOGGED_KEYS = f.optional(f.listed(f.key_or_none, most=LOG_LENGTH_MAX))
_LOGGED_TOKENS = f.listed(f.id16, most=LOG_LENGTH_MAX)
_BROADCAST_KEYS = f.listed(f.key, most=BROADCAST_MAX)
_BROADCAST_TOKENS = f.listed(f.id16, most=BROADCAST_MAX)

_WELCOME = (
    *(f.uint, f.uint, f.id16, f.uint, f.span, f.text, f.uint, f.uint, f.uint),
    *(f.remainder, f.boolean, f.cluster),
)

_SYNCED = (
    *(f.uint, f.uint, f.uint, f.uint, f.uint, _LOGGED_KEYS, f.boolean, f.uint),
    _LOGGED_TOKENS,
)

_TO_GLOBAL: dict[int, tuple[type[ToGlobal], tuple[f.Check, ...]]] = {
    1: (m.Hello, (f.id16, f.uint, f.uint, f.label, f.code(m.Kind))),
    2: (m.Sync, (f.uint, f.uint, f.uint, f.uint, f.uint, f.boolean)),
    3: (m.Ack, (f.uint, f.uint, f.uint)),
    4: (m.Goodbye, (f.uint, f.uint)),
    5: (m.Get, (*f.ENVELOPE, f.keys)),
    6: (m.Set, (*f.ENVELOPE, f.uint, f.uint, f.boolean, _ITEMS, f.uint, f.ttl)),
    7: (m.Del, (*f.ENVELOPE, f.uint, f.uint, f.boolean, f.keys)),
    8: (m.Scan, (*f.ENVELOPE, f.text, f.text, f.uint, f.partitions)),
    9: (m.Stats, f.ENVELOPE),
    10: (m.Fetch, (*f.ENVELOPE, f.key, f.id16, f.uint, f.chunk_length)),
    11: (m.Stage, (*f.ENVELOPE, f.upload, f.uint, f.data)),
    12: (m.Unstage, (f.uint, f.uint, f.id16)),
    13: (m.Wait, (*f.ENVELOPE, f.key, f.span)),
    14: (m.Unwait, (*f.ENVELOPE, f.key)),
    15: (m.Expire, (*f.ENVELOPE, f.uint, f.uint, f.ttl, f.keys)),
    16: (m.Ttl, (*f.ENVELOPE, f.key)),
    17: (m.Offer, (*f.ENVELOPE, f.keys, f.inline)),
    18: (m.AskMap, f.ENVELOPE),
}

_TO_LOCAL: dict[int, tuple[type[ToLocal], tuple[f.Check, ...]]] = {
    65: (m.Welcome, _WELCOME),
    66: (m.Synced, _SYNCED),
    67: (m.Farewell, (f.uint, f.uint)),
    68: (m.GetReply, (*f.ENVELOPE, f.uint, f.codecs, f.inline, f.bodies, f.indexes)),
    69: (m.SetReply, (*f.ENVELOPE, f.listed(f.set_result))),
    70: (m.DelReply, (*f.ENVELOPE, f.listed(f.del_result))),
    71: (m.ScanReply, (*f.ENVELOPE, f.listed(f.key), f.text)),
    72: (m.StatsReply, (*f.ENVELOPE, f.metrics)),
    73: (m.Refused, (*f.ENVELOPE, f.code(m.Refusal), f.text)),
    74: (m.Broadcast, (f.uint, f.uint, _BROADCAST_KEYS, f.boolean, _BROADCAST_TOKENS)),
    75: (m.Chunk, (*f.ENVELOPE, f.id16, f.uint, f.data)),
    76: (m.Staged, (*f.ENVELOPE, f.id16, f.uint, f.uint)),
    77: (m.Committed, (f.uint, f.uint)),
    78: (m.ExpireReply, (*f.ENVELOPE, f.listed(f.expire_result))),
    79: (m.TtlReply, (*f.ENVELOPE, f.boolean, f.ttl_left)),
    80: (m.Offered, (*f.ENVELOPE, f.uint, f.indexes, f.inline)),
    81: (m.MapReply, (*f.ENVELOPE, f.uint, f.members, f.inline, f.cluster)),
}

_TOGETHER: dict[type[Message], Callable[[Any], None]] = {
    m.GetReply: f.check_columns,
    m.Offer: f.check_offer,
    m.Offered: f.check_offered,
    m.MapReply: f.check_map,
}
"""The checks of fields that have to fit together."""

_Table = dict[int, tuple[type[Any], tuple[f.Check, ...]]]

_NUMBER: dict[type[Message], int] = {
    kind: number for number, (kind, _) in (*_TO_GLOBAL.items(), *_TO_LOCAL.items())
}
_GET = _NUMBER[m.Get]
_new = tuple.__new__
"""Makes a message in half the time that a call of its class takes."""
_WITH_DATA = (m.Stage, m.Chunk)
_NUMBERS_WITH_DATA = [bytes([_NUMBER[kind]]) for kind in _WITH_DATA]


def encode(message: Message) -> bytes:
    """Return the frame of a message. If it has data, this frame has the length of the data, and
    :func:`data_of` returns the second frame.
    """
    fields: tuple[object, ...] = message
    if type(message) in _WITH_DATA:
        fields = (*message[:-1], len(data_of(message) or b""))
    packer = Packer(unicode_errors="surrogateescape", buf_size=PACKED_USUALLY)
    packed: bytes = packer.pack((_NUMBER[type(message)], *fields))
    return PREFIX + packed


def topic(kind: type[m.Broadcast | m.Committed]) -> bytes:
    """Return the bytes with which the frames of this kind begin, and no others, to subscribe."""
    return _head(kind)


def _head(kind: type[Message]) -> bytes:
    """Return the bytes with which :func:`encode` begins each frame of this kind, and no other."""
    number = _NUMBER[kind]
    _, checks = _TO_GLOBAL.get(number) or _TO_LOCAL[number]
    return PREFIX + bytes([0x90 | 1 + len(checks), number])


_GET_HEAD, _GET_REPLY_HEAD = _head(m.Get), _head(m.GetReply)


def with_data(frame: bytes) -> bool:
    """Whether a message that begins with this frame has a second one, if it is well-formed."""
    return frame[:3] == PREFIX and frame[4:5] in _NUMBERS_WITH_DATA


def belongs(data: Buffer, frame: bytes) -> bool:
    """Whether ``data`` is the second frame of the message that begins with ``frame``.

    On the way to a Local ZeroMQ has the two as separate messages. When a connection is lost the
    second may be lost alone; the next frame is then that of another message.
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
    """Return the second frame of a message, or None if it has no data."""
    return message.data if isinstance(message, _WITH_DATA) else None


def get_of(frame: bytes) -> m.Get | None:
    """Return the GET in a frame, as :func:`decode_to_global` does, in few steps.

    Returns None for any other frame, and if anything about it is unusual.
    """
    if frame[:5] != _GET_HEAD or len(frame) > QUICK_BYTES_MAX:
        return None
    try:
        _, epoch, session, request, keys = unpackb(
            frame[3:],
            unicode_errors="surrogateescape",
            max_array_len=QUICK_ITEMS_MAX,
            max_map_len=QUICK_ITEMS_MAX,
        )
    except Exception:  # msgpack raises exceptions of several kinds
        return None
    if type(keys) is not list or not keys:
        return None
    if not type(epoch) is type(session) is type(request) is int:
        return None
    if epoch < 0 or session < 0 or request < 0:
        return None
    for key in keys:
        if type(key) is not str or not 0 < len(key) <= f.ASCII_KEY_SAFE:
            return None
    return _new(m.Get, (epoch, session, request, keys))


def get_frame(epoch: int, session: int, request: int, key: m.Key) -> bytes:
    """Return the frame of a GET of one key, as :func:`encode` does."""
    packer = Packer(unicode_errors="surrogateescape", buf_size=PACKED_USUALLY)
    packed: bytes = packer.pack((_GET, epoch, session, request, [key]))
    return PREFIX + packed


def value_of(frame: bytes, request: int) -> tuple[int, bool, bytes, str, bytes] | None:
    """Return what the reply to the GET of one key has: seq, cacheable, token, codec, and body.

    Returns None for any other frame, and if the value is missing, or is not of the usual kind: then
    the frame is to be decoded as all others are.
    """
    if frame[:5] != _GET_REPLY_HEAD or len(frame) > QUICK_BYTES_MAX:
        return None
    try:
        _, epoch, session, answered, seq, codecs, token, bodies, uncacheable = unpackb(
            frame[3:],
            unicode_errors="surrogateescape",
            max_array_len=QUICK_ITEMS_MAX,
            max_map_len=QUICK_ITEMS_MAX,
        )
        (codec,), (body,) = codecs, bodies
        name = f.CODECS.get(codec)
    except Exception:  # msgpack raises exceptions of several kinds
        return None
    if (
        not type(epoch) is type(session) is type(answered) is type(seq) is int
        or epoch < 0
        or session < 0
        or answered != request
        or seq < 0
        or name is None
        or not type(codecs) is type(bodies) is type(uncacheable) is list
        or type(token) is not bytes
        or len(token) != m.TOKEN_BYTES
        or type(body) is not bytes
        or (uncacheable and (uncacheable != [0] or type(uncacheable[0]) is not int))
    ):
        return None
    return seq, not uncacheable, token, name, body


def decode_to_global(frame: Buffer, data: Buffer | None = None) -> ToGlobal:
    """Decode a frame that a Local sent. Raises BadMessage."""
    return _decode(frame, data, _TO_GLOBAL)  # type: ignore[no-any-return]


def decode_to_local(frame: Buffer, data: Buffer | None = None) -> ToLocal:
    """Decode a frame that Global sent. Raises BadMessage."""
    return _decode(frame, data, _TO_LOCAL)  # type: ignore[no-any-return]


def _decode(frame: Buffer, data: Buffer | None, table: _Table) -> Any:
    if frame[:3] != PREFIX:
        raise _foreign(frame)
    packed = frame[3:] if len(frame) < COPIED_QUICKLY else memoryview(frame)[3:]
    if len(packed) > QUICK_BYTES_MAX:
        return _read_all(packed, data, table)
    try:
        things = unpackb(  # as in unpacking.unpacked, without the call
            packed,
            unicode_errors="surrogateescape",
            max_array_len=QUICK_ITEMS_MAX,
            max_map_len=QUICK_ITEMS_MAX,
        )
    except Exception:  # a list is long, or the frame is malformed
        return _read_all(packed, data, table)
    if type(things) is not list or not things:
        raise BadMessage(f"expected an operation, got {f.shown(things)}")
    number, *fields = things
    kind, checks = _lookup(table, number)
    try:
        _check_count(kind, len(fields), len(checks), data)
        if data is not None:
            _check_length(fields[-1], data)
            fields[-1] = data
        return _made(kind, [check(field) for check, field in zip(checks, fields)])
    except BadMessage as error:
        raise _malformed(kind, fields, error) from None


def _read_all(packed: Buffer, data: Buffer | None, table: _Table) -> Any:
    """Decode a frame step by step."""
    kind: type[Any] | None = None
    fields: list[Any] = []
    try:
        frame = Frame(packed)
        count = frame.length(1, FIELDS_MAX) - 1
        kind, checks = _lookup(table, frame.one())
        _check_count(kind, count, len(checks), data)
        for check in checks[: count - (data is not None)]:
            fields.append(f.read(check, frame))  # noqa: PERF401  # _malformed needs what was read
        if data is not None:
            _check_length(frame.one(), data)
            fields.append(checks[-1](data))
        if not frame.ended:
            raise BadMessage("more comes behind it")
        return _made(kind, fields)
    except Exception as error:  # msgpack raises exceptions of several kinds
        wrong = error if isinstance(error, BadMessage) else BadMessage(f"unreadable: {error!r}")
        raise wrong if kind is None else _malformed(kind, fields, wrong) from None


def _made(kind: type[Any], fields: list[Any]) -> Any:
    """Make the message of fields that have been checked one by one."""
    message = kind._make(fields)
    together = _TOGETHER.get(kind)
    if together is not None:
        together(message)
    return message


def _check_count(kind: type[Any], got: int, expected: int, data: Buffer | None) -> None:
    if (data is not None) != (kind in _WITH_DATA):
        raise BadMessage(f"expected {1 + (kind in _WITH_DATA)} frames")
    if got != expected:
        raise BadMessage(f"expected {expected} fields, got {got}")


def _check_length(length: Any, data: Buffer) -> None:
    if type(length) is not int or length != len(data):
        raise BadMessage(f"expected {f.shown(length)} bytes of data, got {len(data)}")


def _foreign(frame: Buffer) -> BadMessage:
    """Make the error for a frame that does not begin as this version's frames do."""
    if frame[:2] != MAGIC:
        return BadMessage("not a frame of dstore")
    version = frame[2] if len(frame) > 2 else "none"
    return OtherVersion(f"protocol version {version} is not spoken here, only {VERSION}")


def _lookup(table: _Table, number: Any) -> tuple[type[Any], tuple[f.Check, ...]]:
    if type(number) is int and number in table:
        return table[number]
    raise BadMessage(f"unknown operation {f.shown(number)}")


def _malformed(kind: Any, fields: list[Any], cause: BadMessage) -> Malformed:
    """Make the error, with the request that it answers if the frame's envelope can be read."""
    error = Malformed(f"{kind.__name__.upper()}: {cause}")
    if kind._fields[:3] == ("epoch", "session", "request"):
        known = [field if type(field) is int and field >= 0 else 0 for field in (*fields, 0, 0, 0)]
        error.envelope = (known[0], known[1], known[2])
    return error
