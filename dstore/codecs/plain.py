"""Values of Python's own: bytes, text, and what msgpack can say.

Types are kept exactly: a tuple comes back as a tuple, and what would change on the way (a
subclass, a named tuple, an enum) is refused. Buffers alone change: they come back as ``bytes``,
inside of lists and dicts too, and by themselves as ``bytes`` if they are short, else as a
read-only ``memoryview``.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgpack

from dstore import config
from dstore.codecs.encoded import BYTES, MSGPACK, TEXT, Encoded, flat, whole
from dstore.codecs.refusal import refusal
from dstore.messages import Buffer

DEPTH_MAX = 100
"""Lists, tuples and dicts inside one another, at most."""
_IMMUTABLE = (bytes, str, int, float, bool, type(None))
_TUPLE = 1  # msgpack extension type: a packed list of the tuple's items


def encode(value: object) -> Encoded:
    """A value of Python's own as bytes. Raises TypeError or ValueError, with what to do."""
    kind = type(value)
    if kind is bytes or kind is bytearray or kind is memoryview:
        return whole(BYTES, flat(value))  # type: ignore[arg-type]
    if kind is str:
        return whole(TEXT, _utf8(value))  # type: ignore[arg-type]
    return whole(MSGPACK, _pack(value))


def decode_bytes(body: Buffer) -> tuple[object, bool]:
    """The body itself, unless it is short and would keep memory of others for its own sake."""
    if type(body) is bytes:
        return body, True
    return (bytes(body) if len(body) <= config.BYTES_MAX else body), False


def decode_text(body: Buffer) -> tuple[object, bool]:
    """Raises UnicodeDecodeError."""
    return str(body, "utf-8"), type(body) is bytes


def decode_msgpack(body: Buffer) -> tuple[object, bool]:
    """Raises whatever msgpack makes of bytes that anybody may have stored."""
    value = _unpack(body)
    return value, type(value) in _IMMUTABLE and type(body) is bytes


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text with lone surrogates is not text: {error}") from None


def _pack(value: object) -> bytes:
    try:
        packed: bytes = msgpack.packb(_packable(value, 0), default=_refuse, strict_types=True)
        return packed
    except OverflowError:
        raise ValueError("an int must fit in 64 bits; store a larger one as text") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"the value cannot be stored: {error}") from None


def _packable(value: Any, depth: int) -> Any:
    """The value with every tuple packed by itself.

    Not by a callback of msgpack: packer in packer would need more stack than a thread may have.
    """
    kind = type(value)
    if kind in (msgpack.ExtType, msgpack.Timestamp):
        _refuse(value)
    if kind not in (list, tuple, dict):
        return value
    if depth == DEPTH_MAX:
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
    if kind is dict:
        inner = depth + 1
        return {_packable(k, inner): _packable(v, inner) for k, v in value.items()}
    items = [_packable(item, depth + 1) for item in value]
    if kind is list:
        return items
    packed = msgpack.packb(items, default=_refuse, strict_types=True)
    return msgpack.ExtType(_TUPLE, packed)


def _refuse(value: object) -> NoReturn:
    if type(value) is int:
        raise OverflowError
    raise refusal(value)


def _unpack(body: Buffer) -> Any:
    tuples: list[bytes] = []

    def note(code: int, data: bytes) -> object:
        if code != _TUPLE:
            raise ValueError(f"unknown extension type {code}")
        tuples.append(data)
        return msgpack.ExtType(code, data)

    value = msgpack.unpackb(body, ext_hook=note, strict_map_key=False)
    return _unpacked(value, 0) if tuples else value


def _unpacked(value: Any, depth: int) -> Any:
    """The value with every tuple unpacked, one after the other."""
    kind = type(value)
    if kind not in (list, dict, msgpack.ExtType):
        return value
    if depth == DEPTH_MAX:
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
    inner = depth + 1
    if kind is dict:
        return {_unpacked(k, inner): _unpacked(v, inner) for k, v in value.items()}
    if kind is list:
        return [_unpacked(item, inner) for item in value]
    if value.code != _TUPLE:
        raise ValueError(f"unknown extension type {value.code}")
    items = msgpack.unpackb(value.data, strict_map_key=False)
    if type(items) is not list:
        raise ValueError("a tuple is packed as a list")
    return tuple(_unpacked(item, inner) for item in items)
