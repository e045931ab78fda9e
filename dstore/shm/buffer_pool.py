"""Reusable buffers for the chunks of values that are being sent.

Fresh memory of this size comes from the system page by page and soon goes back, which would take
longer than to copy a chunk into it.
"""

from __future__ import annotations

from dstore.config import CHUNK_BYTES

BUFFER_BYTES = CHUNK_BYTES
"""Bytes of a buffer. Larger ones are not reused."""
BUFFERS_MAX = 16
"""Buffers that are kept."""


class BufferPool:
    """For one thread. Views of its buffers may be released by any."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def __repr__(self) -> str:
        return f"<BufferPool kept={len(self._kept)}>"

    def take(self, size: int) -> memoryview:
        """Memory to write to. It is not given out again while the view, or one of it, exists."""
        if size > BUFFER_BYTES:
            return memoryview(bytearray(size))
        for buffer in self._kept:
            try:
                # Python refuses to change the length of memory that a view refers to.
                buffer.append(0)
                buffer.pop()
            except BufferError:
                continue
            return memoryview(buffer)[:size]
        buffer = bytearray(BUFFER_BYTES)
        if len(self._kept) < BUFFERS_MAX:
            self._kept.append(buffer)
        return memoryview(buffer)[:size]
