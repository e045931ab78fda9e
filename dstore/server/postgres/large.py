"""The large values of a member: in the memory of its host while they find room, and in pieces in
the database.

A value is written to the database before its row, in the thread of the journal, and is removed from
there after the removal of its row has been committed. What a crash has left is removed when another
member loads the partition. Like its row, a piece is written under the fence of the partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from dstore.core.engine import Bulk, Unloaded
from dstore.errors import StoreFull, ValueCorrupt
from dstore.protocol import content
from dstore.protocol.messages import Buffer, Large, Stored
from dstore.runtime import native
from dstore.server.postgres.values import PIECE_BYTES

PIECES_AT_ONCE = 4
"""Pieces that are written in one statement."""


class Writer(Protocol):
    """Writes large values to the database, and removes them."""

    def put_pieces(self, partition: int, token: bytes, first: int, bodies: Sequence[bytes]) -> None:
        """Write pieces, in the thread of the journal."""

    def drop_pieces(self, partition: int, token: bytes) -> None:
        """Remove all pieces of a value, in the thread of the journal."""


class Dropper(Protocol):
    """What Global's thread needs of the journal."""

    def drop_pieces(self, partition: int, token: bytes) -> None:
        """Remove all pieces of a value after the batches so far."""


class LargeValues:
    """Which large values the database has, of the partitions that this member owns.

    Safe from any thread: Global's and that of the journal use it.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[int, int]] = {}  # partition and size, by token
        self._under_way: set[bytes] = set()  # being written, and not dropped meanwhile
        self._lock = native.Lock()

    def __contains__(self, token: bytes) -> bool:
        return token in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, token: bytes) -> tuple[int, int] | None:
        """Return the partition and the size of a value that is there."""
        return self._kept.get(token)

    def add(self, token: bytes, partition: int, size: int) -> bool:
        """Note a value that was found. False if another one has its token."""
        with self._lock:
            return self._kept.setdefault(token, (partition, size)) == (partition, size)

    def begin(self, token: bytes) -> None:
        with self._lock:
            self._under_way.add(token)

    def end(self, token: bytes, partition: int, size: int) -> None:
        """Note a value that was written. Raises ValueCorrupt if it was dropped meanwhile."""
        with self._lock:
            if token not in self._under_way:
                raise ValueCorrupt("the value was dropped while it was written to the database")
            self._under_way.discard(token)
            self._kept[token] = partition, size

    def drop(self, token: bytes) -> int | None:
        """Forget a value. Returns the partition from which it has to be removed, if it is there."""
        with self._lock:
            self._under_way.discard(token)
            partition, _ = self._kept.pop(token, (None, 0))
            return partition

    def forget(self, tokens: Iterable[bytes]) -> None:
        """Forget values that another member owns."""
        with self._lock:
            for token in tokens:
                self._kept.pop(token, None)


class StoredBulk:
    """A :class:`dstore.engines.Bulk` over another one, ``inner``, and over the database.

    ``inner`` has what is being uploaded, and keeps at most ``memory`` bytes: values that the
    database has leave it, the oldest first. :meth:`keep` and :meth:`read` may be called from any
    thread, the others from Global's thread alone.
    """

    def __init__(self, inner: Bulk, values: LargeValues, dropper: Dropper, memory: int) -> None:
        self._inner = inner
        self._values = values
        self._dropper = dropper
        self._memory = memory
        self.held_bytes = 0  # of what is in ``inner``
        self._held: dict[bytes, int] = {}  # sizes of what is in ``inner``, the oldest first

    def __repr__(self) -> str:
        return f"<StoredBulk {self._inner!r} held={self.held_bytes}, stored={len(self._values)}>"

    # ---- the journal's thread -------------------------------------------------------------

    def keep(self, stored: Stored, partition: int, writer: Writer) -> None:
        """Write a sealed value to the database. Raises ValueCorrupt, and what ``writer`` raises.

        Nothing is done if it is there.
        """
        token, size = stored.token, stored.size
        known = self._values.of(token)
        if known is not None:
            if known != (partition, size):
                raise ValueCorrupt("another value has this token; store this one again")
            return
        assert isinstance(stored.body, Large)
        self._values.begin(token)
        try:
            hasher = content.Hasher(stored.codec)
            step = PIECES_AT_ONCE * PIECE_BYTES
            for start in range(0, size, step):
                bodies = self._pieces(token, start, min(size, start + step))
                for body in bodies:
                    hasher.update(body)
                writer.put_pieces(partition, token, start // PIECE_BYTES, bodies)
            if hasher.digest() != stored.body.digest:
                raise ValueCorrupt("the value was damaged while it was in memory; store it again")
            self._values.end(token, partition, size)
        except Exception:
            # At once: the same value may be uploaded again, and its pieces must stay.
            self._values.drop(token)
            writer.drop_pieces(partition, token)
            raise

    def _pieces(self, token: bytes, start: int, end: int) -> list[bytes]:
        bodies = []
        for offset in range(start, end, PIECE_BYTES):
            count = min(PIECE_BYTES, end - offset)
            part = self._inner.read(token, offset, count)
            if part is None or len(part) != count:
                raise ValueCorrupt("the bytes of the value are lost; store it again")
            bodies.append(bytes(part))
        return bodies

    # ---- Global's thread ------------------------------------------------------------------

    def reserve(self, token: bytes, size: int) -> None:
        if token in self._values:
            raise StoreFull("there is a value with this token")
        self._make_room(size)
        if self.held_bytes + size > self._memory:
            raise StoreFull(
                f"{self.held_bytes:,} of {self._memory:,} bytes for large values in memory are "
                "taken; wait for uploads to end, or start Global with a higher --memory-limit"
            )
        self._inner.reserve(token, size)
        self._hold(token, size)

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        self._inner.write(token, offset, data)

    def seal(self, token: bytes) -> None:
        self._inner.seal(token)

    def adopt(self, token: bytes, size: int) -> bool:
        # A Node may have fetched the value after a take-over. It is Global's all the same.
        if token in self._values or not self._inner.adopt(token, size):
            return False
        self._hold(token, size)
        self._make_room(0)
        return True

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        part = self._inner.read(token, offset, count)
        known = self._values.of(token) if part is None else None
        if known is None:
            return part
        _, size = known
        count = max(0, min(count, size - offset))
        if not count:
            return memoryview(b"")
        raise Unloaded(count)

    def drop(self, token: bytes) -> None:
        self._let_go(token)
        partition = self._values.drop(token)
        if partition is not None:
            self._dropper.drop_pieces(partition, token)

    def forget(self, tokens: Iterable[bytes]) -> None:
        """Forget values that another member owns from now on. They stay in the database."""
        for token in tokens:
            self._let_go(token)

    def close(self) -> None:
        """Close ``inner``, which removes the values from memory. Idempotent."""
        self._held.clear()
        self.held_bytes = 0
        self._inner.close()

    def _hold(self, token: bytes, size: int) -> None:
        self._held[token] = size
        self.held_bytes += size

    def _let_go(self, token: bytes) -> None:
        if token in self._held:
            self.held_bytes -= self._held.pop(token)
            self._inner.drop(token)

    def _make_room(self, size: int) -> None:
        """Let values leave the memory that the database has, until there is room for ``size``."""
        for token in list(self._held):
            if self.held_bytes + size <= self._memory:
                return
            if token in self._values:
                self._let_go(token)
