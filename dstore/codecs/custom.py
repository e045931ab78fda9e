"""Codecs that a user brings for types of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from dstore import checks
from dstore.codecs.encoded import Encoded, flat, joint
from dstore.protocol.messages import Buffer

NAME_MAX = 64
"""Characters."""

Bytes: TypeAlias = bytes | bytearray | memoryview


class Codec(NamedTuple):
    """How values of one type of yours become bytes, and come back.

    Attributes
    ----------
    name
        Travels with each value: 1 to 64 printable ASCII characters, and none of dstore's own
        names. Nodes that read the values need a codec of the same name.
    type
        The codec takes values of exactly this type, not of its subclasses, and not within lists
        and dicts. Not a type that dstore stores anyway.
    encode
        Takes the value and returns its bytes, in one piece or as a list of several, which may be
        views of the value's own memory: they are copied before the write returns. What it raises
        comes out of ``set``.
    decode
        Takes a read-only memoryview of all the bytes and returns the value. It may keep the view
        and parts of it, and so share the memory with other processes. Called afresh for each
        read, and from any thread. If it raises, the read raises ``ValueCorrupt`` from that.
    """

    name: str
    type: type
    encode: Callable[[Any], Bytes | Sequence[Bytes]]
    decode: Callable[[memoryview], Any]


def check(codec: Any) -> None:
    """Raise TypeError or ValueError if this is no codec."""
    if not isinstance(codec, Codec):
        raise TypeError(f"codecs is a list of dstore.Codec, and has {checks.shown(codec)} in it")
    name = checks.text("the name of a codec", codec.name)
    if not (0 < len(name) <= NAME_MAX and name.isascii() and name.isprintable()):
        raise ValueError(
            f"the name of a codec is 1 to {NAME_MAX} printable ASCII characters, not {name!r}"
        )
    if not isinstance(codec.type, type):
        raise TypeError(
            f"the type of the codec {name!r} is a class, not {checks.shown(codec.type)}"
        )
    checks.function(f"encode of the codec {name!r}", codec.encode)
    checks.function(f"decode of the codec {name!r}", codec.decode)


def encode(codec: Codec, value: object) -> Encoded:
    """The value by the user's codec. Raises what that raises, TypeError if it gives no bytes."""
    given: Any = codec.encode(value)
    pieces = [given] if isinstance(given, Bytes) else given
    if isinstance(pieces, str) or not isinstance(pieces, Sequence):
        raise _no_bytes(codec, given)
    for piece in pieces:
        if not isinstance(piece, Bytes):
            raise _no_bytes(codec, piece)
    return joint(codec.name, map(flat, pieces))


def decoder(codec: Codec) -> Callable[[Buffer], tuple[object, bool]]:
    """What reads the bodies of a user's codec. The value is not known to be immutable."""

    def decode(body: Buffer) -> tuple[object, bool]:
        return codec.decode(memoryview(body)), False

    return decode


def _no_bytes(codec: Codec, given: object) -> TypeError:
    return TypeError(
        f"encode of the codec {codec.name!r} gave {type(given).__name__}; it is to return bytes, "
        "bytearray or memoryview, or a list of these"
    )
