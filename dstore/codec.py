"""Python values to tagged bytes and back.

A value travels as the name of its codec and a body of bytes:

========  ==================================================================================
bytes     ``bytes``; ``bytearray`` and ``memoryview`` go in too and come back as ``bytes``
text      ``str``, as UTF-8
msgpack   ``None``, ``bool``, ``int`` (64 bits), ``float``, and lists, tuples and dicts of all these
========  ==================================================================================

Types are kept exactly: a tuple comes back as a tuple, and what would change on the way (a
subclass, a named tuple, an enum) is refused. Buffers alone come back as ``bytes``, inside of
lists and dicts too.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgpack

from dstore.errors import ValueCorrupt
from dstore.messages import Stored

BYTES, TEXT, MSGPACK = "bytes", "text", "msgpack"
_IMMUTABLE = (bytes, str, int, float, bool, type(None))
DEPTH_MAX = 100
"""Lists, tuples and dicts inside one another, at most."""
_TUPLE = 1  # msgpack extension type: a packed list of the tuple's items


def encode(value: object) -> tuple[str, bytes]:
    """The codec and the body of a value. Raises TypeError or ValueError, with what to do."""
    kind = type(value)
    if kind is bytes:
        return BYTES, value  # type: ignore[return-value]
    if kind is str:
        try:
            return TEXT, value.encode()  # type: ignore[attr-defined]
        except UnicodeEncodeError as error:
            raise ValueError(f"text with lone surrogates is not text: {error}") from None
    if kind is bytearray or kind is memoryview:
        return BYTES, bytes(value)  # type: ignore[call-overload]
    return MSGPACK, _pack(value)


def decode(stored: Stored) -> tuple[object, bool]:
    """The value, and whether it is immutable, so that one object may serve all readers.

    Raises ValueCorrupt.
    """
    try:
        if stored.codec == BYTES:
            return stored.body, True
        if stored.codec == TEXT:
            return stored.body.decode(), True
        if stored.codec == MSGPACK:
            value = _unpack(stored.body)
            return value, type(value) in _IMMUTABLE
    except Exception as error:  # whatever msgpack makes of bytes that anybody may have stored
        raise ValueCorrupt(f"the value is not valid {stored.codec}: {error}") from None
    raise ValueCorrupt(f"the value needs the codec {stored.codec!r}, which is not known here")


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
    kind = type(value)
    if kind is int:
        raise OverflowError
    raise TypeError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored; convert it to "
        "bytes, str, None, bool, int, float, list, tuple or dict first"
    )


def _unpack(body: bytes) -> Any:
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
