"""Global's large values: in shared memory, where the Nodes of its host map them, or in its own."""

from __future__ import annotations

import contextlib
import mmap

from dstore.config import CHUNK_BYTES
from dstore.core.engine import Bulk, Lost
from dstore.errors import StoreFull
from dstore.protocol.messages import Buffer
from dstore.runtime import native
from dstore.runtime.background import BACKGROUND_BYTES, janitor
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.shm.memory import WARNING_SECONDS, HostMemory, open_memory
from dstore.shm.partial_files import NoRoom
from dstore.shm.writer import Writer

log = Log("dstore.shm")

MAPS_MAX = 8_192
"""Values that are mapped at a time; others are mapped when they are read."""
BUFFERS_MAX = 16
"""Buffers of CHUNK_BYTES that are kept for reuse."""
MAPPED_MIN = 1 << 20
"""Bytes from which on a value has a mapping of its own."""


class PrivateBulk:
    """A :class:`dstore.engines.Bulk` in the memory of this process.

    A value of ``MAPPED_MIN`` bytes or more is an anonymous mapping: the system gives it the pages
    that are written to, and takes all of them back when it was dropped and no reader is left. But
    a process may have some 65,000 mappings in all. So smaller values are ordinary Python objects,
    very many of which the C library keeps in few mappings.

    The lock orders a reader in another thread and :meth:`drop`: the reader takes its part before
    the value is handed to the janitor, which releases it, or finds no value.
    """

    def __init__(self) -> None:
        self._unsealed: dict[bytes, memoryview] = {}
        self._sealed: dict[bytes, memoryview] = {}
        self._lock = native.Lock()  # guards reading and removing sealed values

    def __repr__(self) -> str:
        return f"<PrivateBulk unsealed={len(self._unsealed)} sealed={len(self._sealed)}>"

    def __contains__(self, token: bytes) -> bool:
        return token in self._unsealed or token in self._sealed

    def reserve(self, token: bytes, size: int) -> None:
        """Make room for a value. Raises StoreFull."""
        try:
            self._unsealed[token] = fresh_memory(size)
        except MemoryError as error:
            raise StoreFull(f"Global has {error}") from None

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        """Write a piece of a value that is reserved and not sealed. Raises KeyError, ValueError."""
        value, part = self._unsealed[token], memoryview(data).cast("B")
        if offset < 0 or offset + len(part) > len(value):
            raise ValueError(f"{len(part)} bytes at {offset} are not within {len(value)}")
        value[offset : offset + len(part)] = part

    def seal(self, token: bytes) -> None:
        """Make a complete value readable. Raises KeyError."""
        self._sealed[token] = self._unsealed.pop(token).toreadonly()

    def adopt(self, token: bytes, size: int) -> bool:
        """Return False: no Node can write to this memory."""
        return False

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        """Return a part of a sealed value, or None."""
        with self._lock:
            value = self._sealed.get(token)
            return None if value is None else value[offset : offset + count]

    def drop(self, token: bytes) -> None:
        """Remove a value, if it is here."""
        with self._lock:
            dropped = self._unsealed.pop(token, None) or self._sealed.pop(token, None)
        release_soon(dropped)

    def close(self) -> None:
        """Forget all values; views of them stay good. Idempotent."""
        self._unsealed.clear()
        with self._lock:
            self._sealed.clear()


def fresh_memory(size: int) -> memoryview:
    """Memory of this process alone, which a forked child does not share. Raises MemoryError."""
    try:
        if size < MAPPED_MIN:
            return memoryview(bytearray(size))
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except (OSError, OverflowError, MemoryError) as error:
        raise MemoryError(f"no memory for a value of {size:,} bytes: {error}") from None


def release_soon(view: memoryview | None) -> None:
    """Release the view of a dropped value; a large one in the background, since that takes long.

    Parts of it that are being sent stay good.
    """
    if view is not None and len(view) >= BACKGROUND_BYTES:
        janitor.do(view.release)


class BufferPool:
    """Reusable buffers for the chunks of values that are being sent. Safe from any thread.

    Fresh memory of this size comes from the system page by page and soon goes back, which would
    take longer than to copy a chunk into it.
    """

    def __init__(self) -> None:
        self._kept: list[bytearray] = []
        self._lock = native.Lock()

    def take(self, size: int) -> memoryview:
        """Memory to write to. It is not given out again while the view, or one of it, exists."""
        if size > CHUNK_BYTES:
            return memoryview(bytearray(size))
        with self._lock:  # another thread would find the same buffer unused
            for buffer in self._kept:
                try:
                    # Python refuses to change the length of memory that a view refers to.
                    buffer.append(0)
                    buffer.pop()
                except BufferError:
                    continue
                return memoryview(buffer)[:size]
            buffer = bytearray(CHUNK_BYTES)
            if len(self._kept) < BUFFERS_MAX:
                self._kept.append(buffer)
            return memoryview(buffer)[:size]


def bulk_for(epoch: int, root: str | None = None, given: Bulk | None = None) -> Bulk:
    """Return the place for the large values of one epoch of a Global.

    In the Bulk that was ``given``, which stays open when the result is closed; else in shared
    memory under ``root`` (see :func:`dstore.shm.open_memory`), else in Global's own memory.
    """
    memory = open_memory(epoch, root=root)
    if given is not None:
        return GivenBulk(given, memory)
    return PrivateBulk() if memory is None else SharedBulk(memory)


class GivenBulk:
    """A Bulk of a program's own, ``inner``, beside the copies that Nodes of this host have.

    Nodes that share the membership of Global's host do not hear which values are deleted. So Global
    removes their copies from ``memory``, as the owner of a membership does on other hosts. It puts
    nothing there.
    """

    def __init__(self, inner: Bulk, memory: HostMemory | None) -> None:
        self._inner = inner
        self._memory = memory

    def __repr__(self) -> str:
        return f"<GivenBulk {self._inner!r}>"

    def reserve(self, token: bytes, size: int) -> None:
        self._inner.reserve(token, size)

    def write(self, token: bytes, offset: int, data: Buffer) -> None:
        self._inner.write(token, offset, data)

    def seal(self, token: bytes) -> None:
        self._inner.seal(token)

    def adopt(self, token: bytes, size: int) -> bool:
        return self._inner.adopt(token, size)

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        return self._inner.read(token, offset, count)

    def drop(self, token: bytes) -> None:
        self._inner.drop(token)
        if self._memory is not None:
            self._memory.drop(token)

    def close(self) -> None:
        """Leave the folder of the copies. ``inner`` stays open. Idempotent."""
        if self._memory is not None:
            self._memory.close()


class SharedBulk:
    """A :class:`dstore.core.engine.Bulk` in shared memory. It closes ``memory`` in the end.

    A value that finds no room there goes to the process's own memory; then Nodes of this host
    fetch it like others.

    A value is read from its file by a system call: another process of this user may cut the file
    short, and to touch a missing page would end Global. (So each chunk is copied. It cannot be
    sent from the mapping, since ZeroMQ touches it later, in a thread of its own.)

    A mapping keeps the bytes when the files are removed. Global does not touch it; when there
    is no file any more, the system copies from it. A process may have some 65,000 mappings, and
    ends when it needs one more. So only the values that were written or read last are mapped.

    The lock guards the sizes and the mappings, which a reader in another thread uses as well. No
    system call within it waits for anything but the memory of this host.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._private = PrivateBulk()
        self._writers: dict[bytes, Writer] = {}
        self._sizes: dict[bytes, int] = {}  # of the sealed values
        self._maps: dict[bytes, memoryview] = {}  # least recently read first
        self._without_file: dict[bytes, memoryview] = {}
        self._full_log = RateLimitedLog(log, WARNING_SECONDS)
        self._damage_log = RateLimitedLog(log)
        self._buffers = BufferPool()
        self._lock = native.Lock()

    def __repr__(self) -> str:
        return (
            f"<SharedBulk unsealed={len(self._writers)} sealed={len(self._sizes)} "
            f"mapped={len(self._maps)} private={self._private!r} in {self._memory.path}>"
        )

    def reserve(self, token: bytes, size: int) -> None:
        try:
            writer = self._memory.begin(token, size, for_global=True)
        except NoRoom as error:
            self._warn(error)
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
        except NoRoom as error:  # others have taken the room that there was
            # What was written is not copied: to copy a large value would stop Global for seconds.
            self._warn(error)
            self._private.reserve(token, writer.size)
            del self._writers[token]
            writer.abandon()
            raise Lost from None

    def _warn(self, error: NoRoom) -> None:
        self._full_log.warning("a value is kept in Global's own memory: %s", str(error))

    def seal(self, token: bytes) -> None:
        writer = self._writers.pop(token, None)
        if writer is None:
            self._private.seal(token)
            return
        view = None
        with contextlib.suppress(NoRoom):  # it cannot be mapped, and is read from the file
            view = writer.view()
        published = writer.publish()
        with self._lock:
            self._sizes[token] = writer.size
            if view is not None and published:
                self._map(token, view)
            elif view is not None:
                self._without_file[token] = view

    def adopt(self, token: bytes, size: int) -> bool:
        if token in self._writers or token in self._sizes or token in self._private:
            return False
        if not self._memory.adopt(token, size):
            return False
        with self._lock:
            self._sizes[token] = size
            self._mapped(token, size)
        return True

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        with self._lock:
            size = self._sizes.get(token)
            view = None if size is None else self._mapped(token, size)
            if view is not None:
                view = view[:]  # the janitor may release the other one while this thread reads
        if size is None:
            return self._private.read(token, offset, count)
        part = self._memory.read(token, size, offset, count, view, self._buffers.take)
        if part is None:
            self._damage_log.warning(
                "a value of %s bytes is lost: its file in %s was removed or cut short",
                f"{size:,}",
                self._memory.path,
            )
        return part

    def _mapped(self, token: bytes, size: int) -> memoryview | None:
        view = self._without_file.get(token)
        if view is None:
            view = self._maps.pop(token, None) or self._memory.find(token, size)
            if view is not None:
                self._map(token, view)
        return view

    def _map(self, token: bytes, view: memoryview) -> None:
        if len(self._maps) >= MAPS_MAX:
            release_soon(self._maps.pop(next(iter(self._maps))))
        self._maps[token] = view

    def drop(self, token: bytes) -> None:
        writer = self._writers.pop(token, None)
        if writer is not None:
            writer.abandon()
        with self._lock:
            size = self._sizes.pop(token, None)
            view = self._maps.pop(token, None) or self._without_file.pop(token, None)
        if size is not None:
            self._memory.drop(token, for_global=True)
            release_soon(view)
        self._private.drop(token)

    def close(self) -> None:
        self._writers.clear()
        with self._lock:
            self._sizes.clear()
            self._maps.clear()
            self._without_file.clear()
        self._private.close()
        self._memory.close()
