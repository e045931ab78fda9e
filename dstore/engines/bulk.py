"""Where Global keeps the bytes of large values, apart from the keys that they are bound to.

Large values come and go in pieces, so they have a place of their own, in which each is known by
the token of its write: reserved, written piece by piece, sealed, then read. As with an engine, one
thread uses it, Global's, and ``dstore/testing`` holds a contract test.
"""

from __future__ import annotations

import mmap
from typing import Protocol

from dstore.errors import StoreFull


class Bulk(Protocol):
    """The bytes of large values by the token of their write. Sizes and offsets are in bytes."""

    def reserve(self, token: bytes, size: int) -> None:
        """Make room for a value that will be written.

        No value has that token, now or in future: if it is used again after :meth:`drop`, it is
        to start the same write afresh. Raises StoreFull, and changes nothing, if there is no
        memory.
        """

    def write(self, token: bytes, offset: int, data: bytes | memoryview) -> None:
        """Write a piece of a value that is reserved and not sealed, in any order.

        Raises KeyError for another token, and ValueError if the piece is not within the value.
        """

    def seal(self, token: bytes) -> None:
        """The value is complete and may be read. It never changes again.

        Raises KeyError unless the value is reserved and not sealed.
        """

    def adopt(self, token: bytes, size: int) -> bool:
        """Take over a value of ``size`` bytes that a Node on this host has written, sealed.

        False, and nothing changed, if there is none such, or if it has been taken over already.
        """

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        """At most ``count`` bytes from ``offset`` on, fewer at the end; read-only.

        None if no such value is here and sealed. The view stays good after :meth:`drop` and
        :meth:`close`.
        """

    def drop(self, token: bytes) -> None:
        """Give up a value, sealed or not. One that is not here is fine."""

    def close(self) -> None:
        """Give up everything. Idempotent."""


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

    def write(self, token: bytes, offset: int, data: bytes | memoryview) -> None:
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
