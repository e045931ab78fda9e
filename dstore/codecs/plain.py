"""Values of Python's built-in types: bytes, text, and what msgpack can express.

Types are kept exactly: a tuple is read as a tuple, and a value whose type would change (a subclass,
a named tuple, an enum) is refused. Only buffers change: within lists and dicts they are read as
``bytes``, and by themselves as ``bytes`` if they are short, else as a read-only ``memoryview``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import islice
from operator import eq
from time import thread_time
from typing import Any, NoReturn, TypeAlias

import msgpack

from dstore import config
from dstore.codecs import budget
from dstore.codecs.budget import DEPTH_MAX, TUPLE
from dstore.codecs.encoded import BYTES, MSGPACK, TEXT, Encoded, flat, whole
from dstore.protocol.messages import Buffer

FEW_KEYS_BYTES = 256
"""Bytes of a body that has too few keys to be slow, even if they collide."""
UNCHECKED_MAX = 64
"""Keys of a dict that is made without checks."""
SAME_HASH_MAX = 32
"""Keys of one dict that may have the same hash. Ordinary keys have a few, since -1 and -2 have the
same one: 32 tuples of five coordinates do.
"""
STEP_KEYS = 4096
"""Keys that are added to a dict before the clock is read again."""
SECONDS_FREE = 0.05
"""Seconds of processor time that any dict may take."""
SECONDS_PER_KEY = 1e-5
"""Seconds that each key may add to that. A key that does not collide takes some 1e-7 seconds."""
NUMBER_BYTES_MAX = 9
"""Bytes of a number in msgpack, at most."""
PLAIN = "bytes, str, None, bool, int, float, list, tuple or dict"
MakeDict: TypeAlias = Callable[[list[tuple[Any, Any]]], dict[Any, Any]]
_IMMUTABLE = (int, float, bool, type(None))
_TIMESTAMPS = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")  # how they begin in msgpack


def encode(value: object) -> Encoded:
    """Encode a value of a built-in type. Raises TypeError or ValueError, with what to do."""
    kind = type(value)
    if kind is bytes or kind is bytearray or kind is memoryview:
        return whole(BYTES, flat(value))  # type: ignore[arg-type]
    if kind is str:
        return whole(TEXT, _utf8(value))  # type: ignore[arg-type]
    return whole(MSGPACK, _pack(value))


def decode_bytes(body: Buffer) -> object:
    """The body itself, unless that is short: then a copy, so as not to keep shared memory alive."""
    if type(body) is bytes:
        return body
    return bytes(body) if len(body) <= config.BYTES_MAX else body


def decode_text(body: Buffer) -> object:
    return str(body, "utf-8")


def kept_text(body: bytes) -> object:
    """Decode a text, for all readers. Returns NotImplemented if it is damaged."""
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError:
        return NotImplemented


def kept_number(body: bytes) -> object:
    """Decode a number, a bool or None, for all readers. Returns NotImplemented for all else.

    That is also returned for a number that other programs have packed in another way: the bytes of
    a value that is kept decoded are made from it again when they are asked for.
    """
    if len(body) > NUMBER_BYTES_MAX:
        return NotImplemented
    try:
        value = decode_msgpack(body)
    except Exception:  # damaged: msgpack raises exceptions of several kinds
        return NotImplemented
    return value if type(value) in _IMMUTABLE and msgpack.packb(value) == body else NotImplemented


KEPT: Mapping[str, Callable[[bytes], object]] = {
    BYTES: bytes,  # of bytes themselves, which are returned as they are
    TEXT: kept_text,
    MSGPACK: kept_number,
}
"""How a cache decodes the values of which one object may serve all readers, by codec."""


def encode_kept(value: object) -> tuple[str, bytes]:
    """Return codec and body of a value that a cache keeps decoded."""
    encoded = encode(value)
    return encoded.codec, encoded.joined()


def decode_msgpack(body: Buffer, *, sound: bool = False) -> object:
    """Decode a body. It is not trusted, unless it is ``sound``: it has been decoded before.

    Raises ValueError, before the value is built, if no Node would have stored it: it would take too
    much memory, or has other types in it. Raises also what msgpack raises for damaged bytes.
    """
    if not sound and (len(body) >= budget.CHECKED_MIN or _may_have_timestamps(bytes(body))):
        budget.check(body)
    return _unpack(body, dict if sound else safe_dict)


def _may_have_timestamps(body: bytes) -> bool:
    """Whether there may be timestamps, which are refused. Quicker than to look at each item."""
    return any(each in body for each in _TIMESTAMPS)


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text with lone surrogates is not text: {error}") from None


def _pack(value: object) -> bytes:
    try:
        packed: bytes = msgpack.packb(_packable(value, 0), default=_refuse, strict_types=True)
        if len(packed) >= budget.CHECKED_MIN:
            budget.check(packed)
        return packed
    except OverflowError:
        raise ValueError("an int must fit in 64 bits; store a larger one as text") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"the value cannot be stored: {error}") from None


def _packable(value: Any, depth: int) -> Any:
    """The value with every tuple in it packed to an ExtType.

    A callback of msgpack would need more stack than a thread may have: a packer for each level.
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
    return _unpack_tuples(value, 0, make) if tuples else value


def _one_level(body: Buffer, extension: Callable[[int, bytes], object], make: MakeDict) -> Any:
    """Unpack a value, but not the tuples in it."""
    few = make is dict or len(body) <= FEW_KEYS_BYTES
    try:
        # Text and bytes as keys, which nearly all dicts have, cannot be made to collide.
        return msgpack.unpackb(body, ext_hook=extension, strict_map_key=not few)
    except ValueError:
        if few:
            raise
    return msgpack.unpackb(body, ext_hook=extension, strict_map_key=False, object_pairs_hook=make)


def _unpack_tuples(value: Any, depth: int, make: MakeDict) -> Any:
    """Unpack every tuple in a value, one after the other. Lists are changed in place."""
    kind = type(value)
    if kind not in (list, dict, msgpack.ExtType):
        return value
    if depth == DEPTH_MAX:
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
    inner = depth + 1
    if kind is dict:
        return make(
            [
                (_unpack_tuples(k, inner, make), _unpack_tuples(v, inner, make))
                for k, v in value.items()
            ]
        )
    if kind is list:
        for index, item in enumerate(value):
            value[index] = _unpack_tuples(item, inner, make)
        return value
    if value.code != TUPLE:
        raise ValueError(f"unknown extension type {value.code}")
    items = _one_level(value.data, msgpack.ExtType, make)
    if type(items) is not list:
        raise ValueError("a tuple is packed as a list")
    return tuple([_unpack_tuples(item, inner, make) for item in items])


def refusal(value: object) -> TypeError:
    kind = type(value)
    return TypeError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored; {_advice(value)}"
    )


def _advice(value: object) -> str:
    numpy = sys.modules.get("numpy")  # a value of NumPy's means that it was imported
    array: Any = getattr(numpy, "ndarray", ())
    if isinstance(value, getattr(numpy, "generic", ())):
        return "convert it with .item() first, or to an array with numpy.asarray()"
    if type(value) is array:
        return (
            "an array can be stored by itself, but inside another value only by a Node with "
            "pickle=True; convert it with .tolist() first"
        )
    if isinstance(value, array):
        return "convert it with numpy.asarray() first, or create the Node with pickle=True"
    return (
        f"convert it to {PLAIN} first, or give the Node a Codec for its type, or create the Node "
        "with pickle=True"
    )


def safe_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Make a dict, in a time that is linear in its size. Raises ValueError if its keys collide.

    Python randomises the hashes of text and bytes, but not those of numbers and of tuples of them.
    With 16,384 tuples of the same hash, which anybody can write down, one dict takes 7 seconds. So
    do keys with different hashes that collide in its table. Equal hashes are counted beforehand.
    Collisions in the table cannot be known without doing what the table does; so a large dict is
    made in steps, and refused when a step takes the time that only colliding keys take.
    """
    if len(pairs) <= UNCHECKED_MAX:
        return dict(pairs)
    hashes = sorted([hash(key) for key, _ in pairs if type(key) is not str])
    if any(map(eq, hashes, islice(hashes, SAME_HASH_MAX, None))):
        raise ValueError(f"more than {SAME_HASH_MAX} keys of a dict have the same hash")
    if len(hashes) <= STEP_KEYS:
        return dict(pairs)
    made: dict[Any, Any] = {}
    limit = thread_time() + SECONDS_FREE
    for start in range(0, len(pairs), STEP_KEYS):
        made.update(pairs[start : start + STEP_KEYS])
        if thread_time() > limit + SECONDS_PER_KEY * len(made):
            raise ValueError("the keys of a dict collide")
    return made
