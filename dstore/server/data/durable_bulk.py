"""The large values of a durable Global: in memory as without a data folder, and on disk."""

from __future__ import annotations

from dstore.core.engine import Bulk
from dstore.errors import StoreFull
from dstore.protocol.messages import Buffer, Stored
from dstore.server.data.large import LargeFiles


class DurableBulk:
    """A :class:`dstore.core.engine.Bulk` over another one, ``inner``, and the files of the values.

    A value is written to ``inner``, which is in memory. The journal calls :meth:`keep` before it
    commits the row that names the value. While ``inner`` has a value it is read from there, and
    else, as after a restart, from its file. (It is not put into ``inner`` again: the first Node of
    this host that fetches it puts it into shared memory for all others.)

    :meth:`keep` and :meth:`read` may be called from any thread, the other methods from Global's
    thread alone.
    """

    def __init__(self, inner: Bulk, files: LargeFiles) -> None:
        self._inner = inner
        self._files = files

    def __repr__(self) -> str:
        return f"<DurableBulk {self._inner!r} over {self._files!r}>"

    def keep(self, stored: Stored) -> None:
        """Make a sealed value durable. See :meth:`LargeFiles.keep` for what it raises."""
        self._files.keep(stored, self._inner.read)

    def reserve(self, token: bytes, size: int) -> None:
        # The file may be unreadable at this moment, so that its value seems to be unknown. An
        # upload under its token would remove it when it is given up.
        if token in self._files:
            raise StoreFull("there is a value with this token, which cannot be read")
        self._inner.reserve(token, size)

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        self._inner.write(token, offset, data)

    def seal(self, token: bytes) -> None:
        self._inner.seal(token)

    def adopt(self, token: bytes, size: int) -> bool:
        # A Node may have fetched the value after a restart. It is Global's all the same.
        return token not in self._files and self._inner.adopt(token, size)

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        part = self._inner.read(token, offset, count)
        return self._files.read(token, offset, count) if part is None else part

    def drop(self, token: bytes) -> None:
        self._inner.drop(token)
        self._files.drop(token)

    def close(self) -> None:
        """Close ``inner``, which removes the values from memory. The files stay. Idempotent."""
        self._inner.close()
