"""Memory for pieces of values that are being sent, used again and again.

Fresh memory of this size comes from the system page by page, and goes back soon: that would take
longer than the copy that goes there.
"""

from __future__ import annotations

from dstore.config import CHUNK_BYTES

PIECE_BYTES = CHUNK_BYTES
"""Bytes that are read in one go; the memory of a larger piece is not kept."""
KEPT_MAX = 16
"""The number of pieces that are kept."""


class Pieces:
    """For one thread, but for views that others let go."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def __repr__(self) -> str:
        return f"<Pieces kept={len(self._kept)}>"

    def take(self, size: int) -> memoryview:
        """Memory to write to, which nobody else has as long as anybody refers to the view."""
        if size > PIECE_BYTES:
            return fresh(size)
        for buffer in self._kept:
            try:
                # Python refuses to change the length of memory that a view refers to.
                buffer.append(0)
                buffer.pop()
            except BufferError:
                continue
            return memoryview(buffer)[:size]
        buffer = bytearray(PIECE_BYTES)
        if len(self._kept) < KEPT_MAX:
            self._kept.append(buffer)
        return memoryview(buffer)[:size]


def fresh(size: int) -> memoryview:
    """Memory that is used once."""
    return memoryview(bytearray(size))
