"""The codecs of a Node: which one encodes a value, and which one decodes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from dstore import checks
from dstore.codecs import array, plain
from dstore.codecs.encoded import BYTES, MSGPACK, NDARRAY, PICKLE, TEXT, Encoded, flat, joint
from dstore.errors import RequestRefused, UnknownCodec, ValueCorrupt
from dstore.protocol.fields import CODEC_NAME_MAX
from dstore.protocol.messages import DAMAGED, UNREADABLE, Buffer, Stored

RESERVED = frozenset({BYTES, TEXT, MSGPACK, NDARRAY, PICKLE, DAMAGED, UNREADABLE})
"""Names that no codec of a user may have: those of dstore's own codecs, and the marks of values
without bytes.
"""
BUILT_IN: frozenset[type] = frozenset(
    {bytes, bytearray, memoryview, str, type(None), bool, int, float, list, tuple, dict}
)
"""Types that no codec of a user may have, along with NumPy's arrays."""

Decoder: TypeAlias = Callable[[Buffer], object]

Bytes: TypeAlias = bytes | bytearray | memoryview


class Codec(NamedTuple):
    """How values of one of your types become bytes, and values again.

    Attributes
    ----------
    name
        Stored with each value: 1 to 64 printable ASCII characters, and none of dstore's own names,
        which are bytes, text, msgpack, ndarray, pickle and damaged. Nodes that read the values need
        a codec of the same name.
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
    if not (0 < len(name) <= CODEC_NAME_MAX and name.isascii() and name.isprintable()):
        raise ValueError(
            f"the name of a codec is 1 to {CODEC_NAME_MAX} printable ASCII characters, not {name!r}"
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


def _not_bytes(codec: Codec, given: object) -> TypeError:
    return TypeError(
        f"encode of the codec {codec.name!r} gave {type(given).__name__}; it is to return bytes, "
        "bytearray or memoryview, or a list of these"
    )


class Codecs:
    """Encodes and decodes the values of one Node. Immutable, and safe from any thread.

    Parameters
    ----------
    codecs
        Codecs for types of the user's own.
    pickle
        Whether to pickle values that no other codec takes, and to unpickle what others have
        pickled. Then every program that can write to Global can run code in this process.

    Raises
    ------
    TypeError, ValueError
        A codec is malformed, or its name or its type is taken.
    """

    def __init__(self, codecs: Iterable[Codec] = (), *, pickle: bool = False) -> None:
        self._by_type: dict[type, Codec] = {}
        self._decoders: dict[str, Decoder] = {
            BYTES: plain.decode_bytes,
            TEXT: plain.decode_text,
            MSGPACK: plain.decode_msgpack,
            NDARRAY: array.decode,
        }
        self._pickle: Callable[[object], Encoded] | None = None
        if pickle:
            from dstore.codecs import pickled

            self._pickle = pickled.encode
            self._decoders[PICKLE] = pickled.decode
        for codec in codecs:
            self._add(codec)

    def __repr__(self) -> str:
        return f"<Codecs {' '.join(self._decoders)}>"

    def encode(self, value: object) -> Encoded:
        """Encode a value: with the codec for its exact type, else with dstore's own, else pickled.

        Large values are not copied: the parts may be views of the value's own memory. Raises
        TypeError or ValueError, with what to do, and what a codec of the user raises.
        """
        kind = type(value)
        codec = self._by_type.get(kind)
        if codec is not None:
            return encode(codec, value)
        try:
            if kind in BUILT_IN or not array.is_array_type(kind):
                return plain.encode(value)
            return array.encode(value)
        except (TypeError, ValueError):
            if self._pickle is None:
                raise
            pickle = self._pickle
        return pickle(value)

    def decode(self, stored: Stored, *, sound: bool = False) -> object:
        """Decode a value.

        A body that is a memoryview stays alive as long as anything that was decoded from it without
        a copy, and is never changed. ``sound`` means that the body has been decoded before, and
        need not be checked again.

        Raises ValueCorrupt and UnknownCodec, and what :func:`check_has_bytes` raises.
        """
        decoder = self._decoders.get(stored.codec)
        if decoder is None:
            check_has_bytes(stored)
            raise UnknownCodec(stored.codec)
        body = stored.body
        if type(body) is memoryview:
            # Another view: the caller may release its own, and this one is read-only.
            body = body.toreadonly()
        elif type(body) is not bytes:
            raise TypeError("only the bytes themselves can be decoded; fetch them first")
        try:
            if sound and stored.codec == MSGPACK:
                return plain.decode_msgpack(body, sound=True)
            return decoder(body)
        except UnknownCodec:
            raise
        except Exception as error:  # the bytes may be damaged or hostile
            raise ValueCorrupt(
                f"the value does not decode as {stored.codec}: {_message(error)}"
            ) from error

    def _add(self, codec: Codec) -> None:
        check(codec)
        if codec.name in RESERVED:
            raise ValueError(f"{codec.name!r} is a name of dstore's own; choose another")
        if codec.name in self._decoders:
            raise ValueError(f"there are two codecs with the name {codec.name!r}")
        if codec.type in BUILT_IN or array.is_array_type(codec.type):
            raise ValueError(f"dstore has a codec for {codec.type.__name__}; wrap it in a class")
        if codec.type in self._by_type:
            raise ValueError(f"there are two codecs for the type {codec.type.__name__}")
        self._by_type[codec.type] = codec
        self._decoders[codec.name] = lambda body: codec.decode(memoryview(body))


def check_has_bytes(stored: Stored) -> None:
    """Check that Global has sent the bytes of a value, whatever its codec.

    Raises ValueCorrupt if they are lost, and RequestRefused if they cannot be had now.
    """
    if stored.codec == DAMAGED:
        raise ValueCorrupt(
            "the value was damaged on Global's disk; delete the key, or replace its value"
        )
    if stored.codec == UNREADABLE:
        raise RequestRefused(
            "Global's engine could not load the value, and its log says why; it may be possible "
            "later"
        )


def _message(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
