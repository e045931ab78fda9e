"""Global's large values in shared memory, where the Nodes of its host read them without a copy."""

from __future__ import annotations

from dstore.core.engine import Bulk, Lost
from dstore.protocol.messages import Buffer
from dstore.runtime.background import MUCH, janitor
from dstore.runtime.logs import Log
from dstore.runtime.rate_limited_log import RateLimitedLog
from dstore.shm.memory import COMPLAINTS_EVERY, HostMemory, open_memory
from dstore.shm.parts import NoRoom, Writer
from dstore.shm.pieces import Pieces
from dstore.shm.private_bulk import PrivateBulk

log = Log("dstore.shm")

MAPS_MAX = 8_192
"""So many values are mapped at a time; others are mapped when they are read."""


def bulk_for(epoch: int, root: str | None = None) -> Bulk:
    """The place for the large values of one life of a Global.

    In shared memory under ``root`` (see :func:`dstore.shm.open_memory`), else in its own memory.
    """
    memory = open_memory(epoch, root=root)
    return PrivateBulk() if memory is None else SharedBulk(memory)


class SharedBulk:
    """A :class:`dstore.core.engine.Bulk` in shared memory. It closes ``memory`` in the end.

    A value that finds no room there goes to the process's own memory; then Nodes of this host
    fetch it like others.

    A value is read from its file, by a call to the system: another process of this user may cut
    the file short, and to touch a page that is missing would end Global. (So a piece is copied. It
    cannot be sent from where it lies, since ZeroMQ touches it later, in a thread of its own.)

    A mapping keeps the bytes if somebody removes the files. It is not touched; when there is no
    file any more, the system copies from it. A process may have some 65,000 mappings, and ends when
    it needs one more, so that values must not have one each: those that came or were read last
    have.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._private = PrivateBulk()
        self._writers: dict[bytes, Writer] = {}
        self._sizes: dict[bytes, int] = {}
        self._maps: dict[bytes, memoryview] = {}  # the one that was read last is the last
        self._kept: dict[bytes, memoryview] = {}  # these have no files any more
        self._rate_limited_log = RateLimitedLog(log, COMPLAINTS_EVERY)
        self._damage = RateLimitedLog(log)
        self._pieces = Pieces()

    def __repr__(self) -> str:
        return (
            f"<SharedBulk unsealed={len(self._writers)} sealed={len(self._sizes)} "
            f"mapped={len(self._maps)} private={self._private!r} in {self._memory.path}>"
        )

    def reserve(self, token: bytes, size: int) -> None:
        try:
            writer = self._memory.begin(token, size, own=True)
        except NoRoom as error:
            self._complain(error)
            writer = None
        if writer is None:
            self._private.reserve(token, size)
        else:
            self._writers[token] = writer

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        writer = self._writers.get(token)
        if writer is None:
            self._private.write(token, offset, data)
            return
        try:
            writer.write(offset, data)
        except NoRoom as error:
            self._move(token, writer, error)
            raise Lost from None

    def seal(self, token: bytes) -> None:
        writer = self._writers.pop(token, None)
        if writer is None:
            self._private.seal(token)
            return
        view = writer.view_if_possible()
        self._sizes[token] = writer.size
        if not writer.publish() and view is not None:
            self._kept[token] = view
        elif view is not None:
            self._map(token, view)

    def _move(self, token: bytes, writer: Writer, error: NoRoom) -> None:
        """Others have taken the room that there was: from now on the value is private.

        It is not copied: a large one would hold up everybody for seconds.
        """
        self._complain(error)
        self._private.reserve(token, writer.size)
        del self._writers[token]
        writer.abandon()

    def _complain(self, error: NoRoom) -> None:
        self._rate_limited_log.warning("a value is kept in Global's own memory: %s", str(error))

    def adopt(self, token: bytes, size: int) -> bool:
        if token in self._writers or token in self._sizes or token in self._private:
            return False
        if not self._memory.adopt(token, size):
            return False
        self._sizes[token] = size
        self._mapped(token, size)
        return True

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        size = self._sizes.get(token)
        if size is None:
            return self._private.read(token, offset, count)
        view = self._mapped(token, size)
        piece = self._memory.read(token, size, offset, count, view, self._pieces.take)
        if piece is None:
            self._damage.warning(
                "a value of %s bytes is lost: somebody has removed its file in %s, or cut it short",
                f"{size:,}",
                self._memory.path,
            )
        return piece

    def _mapped(self, token: bytes, size: int) -> memoryview | None:
        view = self._kept.get(token)
        if view is None:
            view = self._maps.pop(token, None) or self._memory.find(token, size)
            if view is not None:
                self._map(token, view)
        return view

    def _map(self, token: bytes, view: memoryview) -> None:
        if len(self._maps) >= MAPS_MAX:
            self._unmap(next(iter(self._maps)))
        self._maps[token] = view

    def _unmap(self, token: bytes) -> None:
        view = self._maps.pop(token, None) or self._kept.pop(token, None)
        if view is not None and len(view) >= MUCH:
            janitor.do(view.release)  # the pieces of it that are under way stay good

    def drop(self, token: bytes) -> None:
        writer = self._writers.pop(token, None)
        if writer is not None:
            writer.abandon()
        if self._sizes.pop(token, None) is not None:
            self._memory.drop_own(token)
            self._unmap(token)
        self._private.drop(token)

    def close(self) -> None:
        self._writers.clear()
        self._sizes.clear()
        self._maps.clear()
        self._kept.clear()
        self._private.close()
        self._memory.close()
