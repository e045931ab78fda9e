"""The bytes of large values in the memory of Global's process. What that has to do: ``base``."""

from __future__ import annotations

import mmap

from dstore.errors import StoreFull
from dstore.messages import Buffer


class PrivateBulk:
    """Large values in the memory of this process, one anonymous mapping each.

    The system gives each the pages that are written to, and takes all of them back when the value
    has been dropped and nobody reads it any more.
    """

    def __init__(self) -> None:
        self._unsealed: dict[bytes, memoryview] = {}
        self._sealed: dict[bytes, memoryview] = {}

    def __repr__(self) -> str:
        return f"<PrivateBulk unsealed={len(self._unsealed)} sealed={len(self._sealed)}>"

    def __contains__(self, token: bytes) -> bool:
        return token in self._unsealed or token in self._sealed

    def reserve(self, token: bytes, size: int) -> None:
        self._unsealed[token] = _memory(size)

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        value, piece = self._unsealed[token], memoryview(data).cast("B")
        if offset < 0 or offset + len(piece) > len(value):
            raise ValueError(f"{len(piece)} bytes at {offset} are not within {len(value)}")
        value[offset : offset + len(piece)] = piece

    def seal(self, token: bytes) -> None:
        self._sealed[token] = self._unsealed.pop(token).toreadonly()

    def adopt(self, token: bytes, size: int) -> bool:
        return False

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        value = self._sealed.get(token)
        return None if value is None else value[offset : offset + count]

    def drop(self, token: bytes) -> None:
        self._unsealed.pop(token, None)
        self._sealed.pop(token, None)

    def close(self) -> None:
        self._unsealed.clear()
        self._sealed.clear()


def _memory(size: int) -> memoryview:
    """Fresh memory, which a forked child does not share."""
    if not size:
        return memoryview(bytearray())
    try:
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return memoryview(mmap.mmap(-1, size, flags=flags))
        return memoryview(mmap.mmap(-1, size))  # Windows, where nothing forks
    except (OSError, OverflowError) as error:
        raise StoreFull(f"Global has no memory for a value of {size:,} bytes: {error}") from None
