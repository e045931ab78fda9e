"""Codecs of a user, for types of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from dstore import checks
from dstore.codecs.encoded import Encoded, flat, joint
from dstore.protocol.messages import Buffer

NAME_MAX = 64
"""Characters of the name of a codec."""

Bytes: TypeAlias = bytes | bytearray | memoryview


class Codec(NamedTuple):
    """How values of one of your types become bytes, and values again.

    Attributes
    ----------
    name
        Stored with each value: 1 to 64 printable ASCII characters, and none of dstore's own names.
        Nodes that read the values need a codec of the same name.
    type
        The codec takes values of exactly this type, not of its subclasses, and not within lists
        and dicts. It must not be a type that dstore stores itself.
    encode
        Takes the value and returns its bytes, or a list of several bytes objects. They may be views
        of the value's own memory: they are copied before the write returns. ``set`` raises what
        this function raises.
    decode
        Takes a read-only memoryview of all the bytes and returns the value. It may keep the view
        and parts of it, and so share the memory with other processes. It is called for each read,
        from any thread. If it raises, the read raises ``ValueCorrupt`` from that.
    """

    name: str
    type: type
    encode: Callable[[Any], Bytes | Sequence[Bytes]]
    decode: Callable[[memoryview], Any]


def check(codec: Any) -> None:
    """Raise TypeError or ValueError unless this is a well-formed codec."""
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
    """Encode a value. Raises what the codec raises, and TypeError if it does not return bytes."""
    given: Any = codec.encode(value)
    parts = [given] if isinstance(given, Bytes) else given
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise _not_bytes(codec, given)
    for part in parts:
        if not isinstance(part, Bytes):
            raise _not_bytes(codec, part)
    return joint(codec.name, map(flat, parts))


def decoder(codec: Codec) -> Callable[[Buffer], tuple[object, bool]]:
    """The decoder of a user's codec. Its values are not known to be immutable."""

    def decode(body: Buffer) -> tuple[object, bool]:
        return codec.decode(memoryview(body)), False

    return decode


def _not_bytes(codec: Codec, given: object) -> TypeError:
    return TypeError(
        f"encode of the codec {codec.name!r} gave {type(given).__name__}; it is to return bytes, "
        "bytearray or memoryview, or a list of these"
    )
