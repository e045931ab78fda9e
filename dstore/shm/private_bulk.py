"""Large values in the memory of Global's process, for a host without shared memory."""

from __future__ import annotations

import mmap

from dstore.errors import StoreFull
from dstore.protocol.messages import Buffer
from dstore.runtime.background import BACKGROUND_BYTES, janitor

MAPPED_MIN = 1 << 20
"""Bytes from which on a value has a mapping of its own."""


class PrivateBulk:
    """A :class:`dstore.core.engine.Bulk` in the memory of this process.

    A value of ``MAPPED_MIN`` bytes or more is an anonymous mapping: the system gives it the pages
    that are written to, and takes all of them back when it was dropped and no reader is left. But
    a process may have some 65,000 mappings in all. So smaller values are ordinary Python objects,
    very many of which the C library keeps in few mappings.
    """

    def __init__(self) -> None:
        self._unsealed: dict[bytes, memoryview] = {}
        self._sealed: dict[bytes, memoryview] = {}

    def __repr__(self) -> str:
        return f"<PrivateBulk unsealed={len(self._unsealed)} sealed={len(self._sealed)}>"

    def __contains__(self, token: bytes) -> bool:
        return token in self._unsealed or token in self._sealed

    def reserve(self, token: bytes, size: int) -> None:
        try:
            self._unsealed[token] = fresh_memory(size)
        except MemoryError as error:
            raise StoreFull(f"Global has {error}") from None

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        value, part = self._unsealed[token], memoryview(data).cast("B")
        if offset < 0 or offset + len(part) > len(value):
            raise ValueError(f"{len(part)} bytes at {offset} are not within {len(value)}")
        value[offset : offset + len(part)] = part

    def seal(self, token: bytes) -> None:
        self._sealed[token] = self._unsealed.pop(token).toreadonly()

    def adopt(self, token: bytes, size: int) -> bool:
        return False

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        value = self._sealed.get(token)
        return None if value is None else value[offset : offset + count]

    def drop(self, token: bytes) -> None:
        for values in (self._unsealed, self._sealed):
            release_soon(values.pop(token, None))

    def close(self) -> None:
        self._unsealed.clear()
        self._sealed.clear()


def fresh_memory(size: int) -> memoryview:
    """Memory of this process alone, which a forked child does not share. Raises MemoryError."""
    try:
        if size < MAPPED_MIN:
            return memoryview(bytearray(size))
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return memoryview(mmap.mmap(-1, size, flags=flags))
        return memoryview(mmap.mmap(-1, size))  # Windows, where nothing forks
    except (OSError, OverflowError, MemoryError) as error:
        raise MemoryError(f"no memory for a value of {size:,} bytes: {error}") from None


def release_soon(view: memoryview | None) -> None:
    """Release the view of a dropped value; a large one in the background, since that takes long.

    Parts of it that are being sent stay good.
    """
    if view is not None and len(view) >= BACKGROUND_BYTES:
        janitor.do(view.release)
