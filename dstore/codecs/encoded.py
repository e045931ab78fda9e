"""An encoded value: the name of its codec and its bytes in parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dstore.protocol.messages import Buffer

BYTES, TEXT, MSGPACK, NDARRAY, PICKLE = "bytes", "text", "msgpack", "ndarray", "pickle"


class Encoded(NamedTuple):
    """An encoded value: the name of its codec, and the parts of its body in order.

    A part is ``bytes``, or a ``memoryview`` of bytes (one dimension, format ``B``), perhaps of the
    user's own memory: the receiver of the parts copies them before the user's call returns.
    ``size`` is the bytes of all parts.
    """

    codec: str
    parts: tuple[Buffer, ...]
    size: int

    def __repr__(self) -> str:
        return f"<Encoded {self.codec} bytes={self.size} parts={len(self.parts)}>"

    def joined(self) -> bytes:
        """Return the whole body. It is copied unless it is one ``bytes`` object already."""
        if len(self.parts) == 1 and type(self.parts[0]) is bytes:
            return self.parts[0]
        return b"".join(self.parts)


def whole(codec: str, body: Buffer) -> Encoded:
    return Encoded(codec, (body,), len(body))


def joint(codec: str, parts: Iterable[Buffer]) -> Encoded:
    """Return an Encoded with a body of several parts; empty ones are left out."""
    kept = tuple(part for part in parts if len(part))
    return Encoded(codec, kept, sum(map(len, kept)))


def flat(value: bytes | bytearray | memoryview) -> Buffer:
    """The value itself, or a view of its bytes, or a copy of them if they are not contiguous."""
    if type(value) is bytes:
        return value
    view = memoryview(value)
    if view.c_contiguous and view.nbytes:  # Python does not cast a view with a zero in its shape
        return view.cast("B")
    return view.tobytes()
