"""Global's large values in shared memory, where the Nodes of its host read them without a copy."""

from __future__ import annotations

import logging

from dstore.engines.base import Bulk
from dstore.engines.bulk import PrivateBulk
from dstore.limited_log import LimitedLog
from dstore.shm.memory import HostMemory, open_memory
from dstore.shm.parts import NoRoom, Writer

log = logging.getLogger("dstore.shm")


def bulk_for(epoch: int, root: str | None = None) -> Bulk:
    """The place for the large values of one life of a Global.

    In shared memory under ``root`` (see :func:`dstore.shm.open_memory`), else in its own memory.
    """
    memory = open_memory(epoch, root=root)
    return PrivateBulk() if memory is None else SharedBulk(memory)


class SharedBulk:
    """A :class:`dstore.engines.base.Bulk` in shared memory. It closes ``memory`` in the end.

    A value that finds no room there goes to the process's own memory; then Nodes of this host
    fetch it like others.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._private = PrivateBulk()
        self._writers: dict[bytes, Writer] = {}
        self._views: dict[bytes, memoryview] = {}
        self._complaints = LimitedLog(log)

    def __repr__(self) -> str:
        return (
            f"<SharedBulk unsealed={len(self._writers)} sealed={len(self._views)} "
            f"private={self._private!r} in {self._memory.path}>"
        )

    def reserve(self, token: bytes, size: int) -> None:
        try:
            writer = self._memory.begin(token, size, own=True)
        except NoRoom as error:
            self._complaints.warning("a value is kept in Global's own memory: %s", error)
            writer = None
        if writer is None:
            self._private.reserve(token, size)
        else:
            self._writers[token] = writer

    def write(self, token: bytes, offset: int, data: bytes | memoryview) -> None:
        writer = self._writers.get(token)
        if writer is None:
            self._private.write(token, offset, data)
        else:
            writer.write(offset, data)

    def seal(self, token: bytes) -> None:
        writer = self._writers.pop(token, None)
        if writer is None:
            self._private.seal(token)
        else:
            self._views[token] = writer.seal()

    def adopt(self, token: bytes, size: int) -> bool:
        if token in self._writers or token in self._views or token in self._private:
            return False
        view = self._memory.adopt(token, size)
        if view is not None:
            self._views[token] = view
        return view is not None

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        value = self._views.get(token)
        if value is None:
            return self._private.read(token, offset, count)
        return value[offset : offset + count]

    def drop(self, token: bytes) -> None:
        writer = self._writers.pop(token, None)
        if writer is not None:
            writer.abandon()
        if self._views.pop(token, None) is not None:
            self._memory.drop_own(token)
        self._private.drop(token)

    def close(self) -> None:
        self._writers.clear()
        self._views.clear()
        self._private.close()
        self._memory.close()
