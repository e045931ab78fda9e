"""Values of Python's own: bytes, text, and what msgpack can say.

Types are kept exactly: a tuple comes back as a tuple, and what would change on the way (a
subclass, a named tuple, an enum) is refused. Buffers alone change: they come back as ``bytes``,
inside of lists and dicts too, and by themselves as ``bytes`` if they are short, else as a
read-only ``memoryview``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import msgpack

from dstore import config
from dstore.codecs import budget, keys
from dstore.codecs.budget import DEPTH_MAX, TUPLE
from dstore.codecs.encoded import BYTES, MSGPACK, TEXT, Encoded, flat, whole
from dstore.codecs.refusal import refusal
from dstore.protocol.messages import Buffer

FEW_KEYS_BYTES = 256
"""A body of so few bytes has too few keys to be slow, whatever they are."""
MakeDict: TypeAlias = Callable[[list[tuple[Any, Any]]], dict[Any, Any]]
_IMMUTABLE = (int, float, bool, type(None))
_TIMESTAMPS = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")  # as msgpack packs them


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
    """Raises ValueError, before the value is built, if no Node would have stored it: since it would
    take too much memory, or has in it what is not of Python's own. Raises also whatever msgpack
    makes of bytes that anybody may have stored.
    """
    if len(body) >= budget.CHECKED_FROM or _may_have_timestamps(bytes(body)):
        budget.check(body)
    value = _unpack(body, keys.safe_dict)
    return value, type(value) in _IMMUTABLE and type(body) is bytes


def decode_msgpack_again(body: Buffer) -> tuple[object, bool]:
    """The same of a body that has been decoded before: it is known to be harmless."""
    value = _unpack(body, dict)
    return value, type(value) in _IMMUTABLE and type(body) is bytes


def _may_have_timestamps(body: bytes) -> bool:
    """Which msgpack would make objects of its own of. Quicker than to look at each item."""
    return any(each in body for each in _TIMESTAMPS)


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text with lone surrogates is not text: {error}") from None


def _pack(value: object) -> bytes:
    try:
        packed: bytes = msgpack.packb(_packable(value, 0), default=_refuse, strict_types=True)
        if len(packed) >= budget.CHECKED_FROM:
            budget.check(packed)
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
    return msgpack.ExtType(TUPLE, packed)


def _refuse(value: object) -> NoReturn:
    if type(value) is int:
        raise OverflowError
    raise refusal(value)


def _unpack(body: Buffer, make: MakeDict) -> Any:
    tuples = False

    def note(code: int, data: bytes) -> object:
        nonlocal tuples
        tuples = True
        if code != TUPLE:
            raise ValueError(f"unknown extension type {code}")
        return msgpack.ExtType(code, data)

    value = _one_level(body, note, make)
    return _untied(value, 0, make) if tuples else value


def _one_level(body: Buffer, extension: Callable[[int, bytes], object], make: MakeDict) -> Any:
    """The value with its tuples still packed."""
    few = make is dict or len(body) <= FEW_KEYS_BYTES
    try:
        # Text and bytes as keys, which nearly all dicts have, cannot be made to collide.
        return msgpack.unpackb(body, ext_hook=extension, strict_map_key=not few)
    except ValueError:
        if few:
            raise
    return msgpack.unpackb(body, ext_hook=extension, strict_map_key=False, object_pairs_hook=make)


def _untied(value: Any, depth: int, make: MakeDict) -> Any:
    """The value with every tuple unpacked, one after the other; lists stay the same objects."""
    kind = type(value)
    if kind not in (list, dict, msgpack.ExtType):
        return value
    if depth == DEPTH_MAX:
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
    inner = depth + 1
    if kind is dict:
        return make([(_untied(k, inner, make), _untied(v, inner, make)) for k, v in value.items()])
    if kind is list:
        for place, item in enumerate(value):
            value[place] = _untied(item, inner, make)
        return value
    if value.code != TUPLE:
        raise ValueError(f"unknown extension type {value.code}")
    items = _one_level(value.data, msgpack.ExtType, make)
    if type(items) is not list:
        raise ValueError("a tuple is packed as a list")
    return tuple([_untied(item, inner, make) for item in items])
