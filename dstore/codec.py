"""Python values to tagged bytes and back.

A value travels as the name of its codec and a body of bytes:

========  ==================================================================================
bytes     ``bytes``; ``bytearray`` and ``memoryview`` go in too and come back as ``bytes``
text      ``str``, as UTF-8
msgpack   ``None``, ``bool``, ``int`` (64 bits), ``float``, and lists, tuples and dicts of all these
========  ==================================================================================

Types are kept exactly: a tuple comes back as a tuple, and what would change on the way (a
subclass, a named tuple, an enum) is refused.
"""

from __future__ import annotations

from typing import Any

import msgpack

from dstore.errors import ValueCorrupt
from dstore.messages import Stored

BYTES, TEXT, MSGPACK = "bytes", "text", "msgpack"
_IMMUTABLE = (bytes, str, int, float, bool, type(None))
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
        packed: bytes = msgpack.packb(value, default=_extend, strict_types=True)
        return packed
    except OverflowError:
        raise ValueError("an int must fit in 64 bits; store a larger one as text") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"the value cannot be stored: {error}") from None


def _extend(value: object) -> msgpack.ExtType:
    if type(value) is tuple:
        return msgpack.ExtType(_TUPLE, _pack(list(value)))
    kind = type(value)
    if kind is int:
        raise OverflowError
    raise TypeError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored; convert it to "
        "bytes, str, None, bool, int, float, list, tuple or dict first"
    )


def _unpack(body: bytes) -> Any:
    return msgpack.unpackb(body, ext_hook=_extended, strict_map_key=False, use_list=True)


def _extended(code: int, data: bytes) -> object:
    if code != _TUPLE:
        raise ValueError(f"unknown extension type {code}")
    items = _unpack(data)
    if type(items) is not list:
        raise ValueError("a tuple is packed as a list")
    return tuple(items)
