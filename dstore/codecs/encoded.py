"""A value as bytes, on its way from a program to Global."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dstore.protocol.messages import Buffer

BYTES, TEXT, MSGPACK, NDARRAY, PICKLE = "bytes", "text", "msgpack", "ndarray", "pickle"


class Encoded(NamedTuple):
    """One value as bytes: the name of its codec, and the parts of its body in order.

    A part is ``bytes``, or a ``memoryview`` of bytes (one dimension, format ``B``) that may be of
    the user's own memory: whoever takes the parts copies them before the user goes on. ``size``
    is their sum, in bytes.
    """

    codec: str
    parts: tuple[Buffer, ...]
    size: int

    def __repr__(self) -> str:
        return f"<Encoded {self.codec} bytes={self.size} parts={len(self.parts)}>"

    def joined(self) -> bytes:
        """The whole body. Copies it, unless it is one ``bytes`` object already."""
        if len(self.parts) == 1 and type(self.parts[0]) is bytes:
            return self.parts[0]
        return b"".join(self.parts)


def whole(codec: str, body: Buffer) -> Encoded:
    """The Encoded of a body that is one piece."""
    return Encoded(codec, (body,), len(body))


def joint(codec: str, parts: Iterable[Buffer]) -> Encoded:
    """The Encoded of a body in several pieces; those without bytes are left out."""
    kept = tuple(part for part in parts if len(part))
    return Encoded(codec, kept, sum(map(len, kept)))


def flat(value: bytes | bytearray | memoryview) -> Buffer:
    """The bytes of a value in a row: itself, or a view of it, or a copy if it does not lie so."""
    if type(value) is bytes:
        return value
    view = memoryview(value)
    if view.c_contiguous and view.nbytes:  # Python casts no view that has a zero in its shape
        return view.cast("B")
    return view.tobytes()
