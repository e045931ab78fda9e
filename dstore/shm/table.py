"""The host cache: small values that the processes of one user on one host share.

A table is a file in shared memory, of one session. All processes map it; readers take no lock
(:mod:`dstore.shm.records`), writers one that they never wait for (:mod:`dstore.shm.ring`). A table
knows nothing of leases and invalidations: a record that is found has to be compared with the
invalidation vector, like any entry.

The lock of writers is a POSIX record lock, which falls with its process, and also when the process
closes *any* descriptor of the file. So a process opens a file once, whatever the number of its
users: :data:`_opened` has what is open. These locks exclude no threads; a lock of the process does.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

from dstore.compiled import native as compiled
from dstore.core.local.shared import Record
from dstore.runtime import native
from dstore.shm import files, locks, ring, writable
from dstore.shm.directory import Directory, Unusable
from dstore.shm.layout import (
    EVICTIONS,
    HEAD,
    HEADER_BYTES,
    MAGIC,
    MAIN,
    MOVES,
    PUTS,
    READMITTED,
    RESERVED,
    RESETS,
    SIZE,
    SIZE_MAX,
    SIZE_MIN,
    SMALL,
    TAIL,
    UNIT,
    WORD_MAGIC,
    WORD_SIZE,
    Layout,
)
from dstore.shm.records import Reader, is_dead, name_at
from dstore.shm.ring import Writer

RESERVE_STEP = 1 << 20
"""Bytes of a ring that are reserved at a time, while it is filled for the first time."""
ORDERED = {"x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"}
"""Processors that keep the order of loads, and of stores, so that Python can read and write."""

Item: TypeAlias = "tuple[str, int, int, bytes, str, bytes]"
"""Key, its hash, seq, token, codec, body."""
Find: TypeAlias = "Callable[[str, int], Record | None]"


def _nothing(key: str, hash64: int) -> Record | None:
    """Find nothing: what a table does that is closed, or not this process's."""
    return None


class Storage:
    """The memory of a table and the lock of its writers. ``identity`` is that of the file.

    Descriptor and mapping end with the last reference to this object. A thread in the middle of a
    call has one.
    """

    def __init__(
        self, memory: memoryview, layout: Layout, reserve: ring.Reserve, lock_file: int | None
    ) -> None:
        self.layout = layout
        self.memory = memory
        self.words = memory.cast("Q")
        self.reader = Reader(memory, layout, Record)
        self.writer = Writer(memory, layout, reserve)
        self.lock_file = lock_file
        self.suspended = False
        self.mapping: writable.Mapping | None = None
        self._lock = native.Lock()

    def values(self) -> Iterator[tuple[str, str, bytes]]:
        """Iterate over keys, codecs and bodies of the records."""
        words, begin = self.words, HEADER_BYTES // UNIT
        for place in range(begin, begin + self.layout.index_words):
            name = name_at(self.memory, self.layout, words, words[place])
            record = None if name is None else self.reader.find(*name)
            if name is not None and record is not None:
                yield name[0], record.codec, record.body

    def put_all(self, items: Iterable[Item]) -> int:
        """Write records. Returns how many; none if another thread or process is writing."""
        # A signal handler may run here while its thread is writing: it sees the lock, and does not
        # wait. Another thread that takes the lock just now is waited for: it waits for nothing.
        # (To try the lock itself would leave it taken if Ctrl-C came before the next step.)
        if self.suspended or self._lock.locked():
            return 0
        lock_file, put, count = self.lock_file, self.writer.put, 0
        with self._lock:
            try:
                if lock_file is None or locks.try_exclusive(lock_file):
                    for item in items:
                        count += put(*item)
            finally:
                if lock_file is not None:
                    locks.release(lock_file)
        return count


class Table:
    """A host cache, as one of its users in this process has opened it. Safe from any thread."""

    def __init__(self, storage: Storage, path: str = "") -> None:
        self.path = path
        self._storage: Storage | None = storage
        self._find: Find = storage.reader.find

    def __repr__(self) -> str:
        return f"<Table {self.path or 'in private memory'}{'' if self._storage else ' closed'}>"

    @classmethod
    def create(cls, directory: Directory, name: str, size: int) -> Table:
        """Create the file of a table of at most ``size`` bytes, and open it.

        Header and index are reserved, the rings as they fill. Raises OSError, as when there is no
        memory or the file exists, and Unusable.
        """
        if not SIZE_MIN <= size <= SIZE_MAX:
            raise Unusable(f"a host cache has {SIZE_MIN:,} to {SIZE_MAX:,} bytes, not {size:,}")
        _check_machine()
        with native.signals_blocked(), _gate:
            file = files.create(directory, name)
            try:
                storage = _created(file, size)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory.fd)
                raise
            return cls._of(storage, directory, name)

    @classmethod
    def open(cls, directory: Directory, name: str) -> Table:
        """Open a table that some process of this user has created. Raises OSError and Unusable."""
        _check_machine()
        with native.signals_blocked(), _gate:
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            storage = _opened.get((status.st_dev, status.st_ino))
            if storage is None:
                with files.open_writable(directory, name, create=False) as file:
                    layout = _layout_of(file, os.path.join(directory.path, name))
                    storage = _mapped(file, layout)
            return cls._of(storage, directory, name)

    @classmethod
    def over(cls, buffer: bytearray, size: int) -> Table:
        """Return a table in private memory of ``size`` bytes of zeros, without a file."""
        layout = Layout.of(size)
        memory = memoryview(buffer)[: layout.total]
        ring.begin(memory.cast("Q"), layout, layout.small_units, layout.main_units)
        return cls(Storage(memory, layout, lambda start, end: end, None))

    @classmethod
    def _of(cls, storage: Storage, directory: Directory, name: str) -> Table:
        table = cls(storage, os.path.join(directory.path, name))
        _tables.add(table)
        return table

    def find(self, key: str, hash64: int) -> Record | None:
        """Return the record of a key, whose hash is ``hash64``, and mark it as read.

        None in a forked child of the process that opened the table, and after :meth:`close`.
        """
        return self._find(key, hash64)

    def put(self, key: str, hash64: int, seq: int, token: bytes, codec: str, body: bytes) -> bool:
        """Write a record. False if it is not possible at once, or one with a higher seq is there.

        A put may be lost at any time, and evicts others. A record is at most a quarter of the small
        ring, which is a tenth of the table.
        """
        return self.put_many(((key, hash64, seq, token, codec, body),)) == 1

    def put_many(self, items: Iterable[Item]) -> int:
        """Write records under one lock, each as :meth:`put` does. Returns how many were written."""
        storage = self._storage
        return 0 if storage is None else storage.put_all(items)

    def values(self) -> Iterator[tuple[str, str, bytes]]:
        """Iterate over keys, codecs and bodies of its records, also after :meth:`close`.

        Others may go on to write: what is gone meanwhile is left out.
        """
        storage = self._storage
        return iter(()) if storage is None else storage.values()

    def close(self) -> None:
        """Close it for this user. The file stays. Idempotent; a call under way ends as it would."""
        self._find = _nothing
        self._storage = None

    def suspend(self) -> None:
        """Find nothing until :meth:`resume`: the process is about to fork."""
        self._find = _nothing

    def resume(self) -> None:
        storage = self._storage
        if storage is not None:
            self._find = storage.reader.find
            if self._storage is None:  # closed by another thread just now
                self._find = _nothing

    @property
    def reader(self) -> Reader | None:
        """What reads the table, also after a close and in a forked child, which find nothing."""
        storage = self._storage
        return None if storage is None else storage.reader

    @property
    def size(self) -> int:
        """Bytes that it may take; 0 after :meth:`close`."""
        storage = self._storage
        return 0 if storage is None else storage.layout.total

    @property
    def used(self) -> int:
        """Bytes of its records; 0 after :meth:`close`."""
        storage = self._storage
        if storage is None or storage.suspended:
            return 0
        words = storage.words
        return UNIT * sum([words[each + HEAD] - words[each + TAIL] for each in (SMALL, MAIN)])

    def stats(self) -> dict[str, int]:
        """Return counts: records and bytes that are there now, and what has happened so far.

        Takes a moment for a large table: the whole index is read. Empty after :meth:`close`.
        """
        storage = self._storage
        if storage is None or storage.suspended:
            return {}
        words, layout = storage.words, storage.layout
        begin = HEADER_BYTES // UNIT
        index = words[begin : begin + layout.index_words].tolist()
        used = sum(words[each + HEAD] - words[each + TAIL] for each in (SMALL, MAIN))
        size, reserved = (
            layout.small + UNIT * sum(words[each + which] for each in (SMALL, MAIN))
            for which in (SIZE, RESERVED)
        )
        return {
            "records": sum(not is_dead(word, words) for word in index if word),
            "bytes": UNIT * used,
            "reserved": reserved,
            "size": size,
            "puts": words[PUTS],
            "evictions": words[EVICTIONS],
            "moves": words[MOVES],
            "readmitted": words[READMITTED],
            "resets": words[RESETS],
        }

    def counts(self) -> dict[str, int]:
        """Return those of :meth:`stats` that are at hand, without a look at the whole index."""
        storage = self._storage
        if storage is None or storage.suspended:
            return {}
        words = storage.words
        used = sum(words[each + HEAD] - words[each + TAIL] for each in (SMALL, MAIN))
        return {
            "bytes": UNIT * used,
            "size": storage.layout.total,
            "puts": words[PUTS],
            "evictions": words[EVICTIONS],
        }


# ---- files ------------------------------------------------------------------------------------


def _check_machine() -> None:
    if not writable.AVAILABLE or not hasattr(os, "posix_fallocate"):
        raise Unusable("a host cache needs Linux, and a Python with ctypes")
    if compiled is None and platform.machine().lower() not in ORDERED:
        raise Unusable(f"on {platform.machine()} a host cache needs the compiled part of dstore")


def _created(file: io.FileIO, size: int) -> Storage:
    layout = Layout.of(size)
    with file:
        step = RESERVE_STEP // UNIT
        small, main = min(step, layout.small_units), min(step, layout.main_units)
        os.ftruncate(file.fileno(), layout.total)
        os.posix_fallocate(file.fileno(), 0, layout.small + UNIT * small)
        os.posix_fallocate(file.fileno(), layout.main, UNIT * main)
        storage = _mapped(file, layout)
    ring.begin(storage.words, layout, small, main)
    storage.words[WORD_SIZE] = size
    storage.words[WORD_MAGIC] = MAGIC
    return storage


def _layout_of(file: io.FileIO, path: str) -> Layout:
    """Return the layout that the header names, if it is of this version and the file is whole."""
    # Not through a mapping: a page that the file does not have would end this process.
    raw = os.pread(file.fileno(), HEADER_BYTES, 0)
    if len(raw) == HEADER_BYTES:
        words = memoryview(raw).cast("Q")
        if words[WORD_MAGIC] == MAGIC and SIZE_MIN <= words[WORD_SIZE] <= SIZE_MAX:
            layout = Layout.of(words[WORD_SIZE])
            if os.fstat(file.fileno()).st_size == layout.total:
                return layout
    raise Unusable(f"{path} is not a whole host cache of this version of dstore")


def _mapped(file: io.FileIO, layout: Layout) -> Storage:
    """Map a file of a layout, and keep a descriptor of it to lock it and to reserve its memory."""
    mapping = writable.Mapping(file.fileno(), layout.total)
    descriptor = os.dup(file.fileno())  # this process holds no lock on the file yet
    storage = Storage(mapping.view, layout, partial(_reserve, descriptor, layout), descriptor)
    weakref.finalize(storage, os.close, descriptor).atexit = False
    storage.mapping = mapping
    status = os.fstat(descriptor)
    _opened[status.st_dev, status.st_ino] = storage
    return storage


def _reserve(descriptor: int, layout: Layout, start: int, end: int) -> int:
    """Reserve memory of a ring from ``start`` to ``end`` or beyond, or none if there is no more."""
    limit = layout.main if start < layout.main else layout.total
    for wanted in (min(limit, max(end, start + RESERVE_STEP)), end):
        with contextlib.suppress(OSError):
            os.posix_fallocate(descriptor, start, wanted - start)
            return wanted
    return start


# ---- forks ------------------------------------------------------------------------------------

_gate = native.RLock()
"""Guards what is open. Held through a fork, so that the child finds it complete."""
_opened: weakref.WeakValueDictionary[tuple[int, int], Storage] = weakref.WeakValueDictionary()
"""What this process has open, by device and inode."""
_tables: weakref.WeakSet[Table] = weakref.WeakSet()


def _suspend() -> None:
    """Before a fork: until it is over nothing is read or written, by no other hook either."""
    _gate.acquire()
    for storage in list(_opened.values()):
        storage.suspended = True
        if storage.mapping is not None:
            storage.mapping.let_through()
    for table in list(_tables):
        table.suspend()


def _resume() -> None:
    for storage in list(_opened.values()):
        if storage.mapping is not None:
            storage.mapping.keep_from_children()
        storage.suspended = False
    for table in list(_tables):
        table.resume()
    _gate.release()


def _drop() -> None:
    """In the child: the memory is the parent's. The child may open the file by itself."""
    global _gate
    _gate = native.RLock()
    for storage in list(_opened.values()):
        if storage.mapping is not None:
            storage.mapping.become_empty()
    for table in list(_tables):
        table.close()
    _opened.clear()
    _tables.clear()


os.register_at_fork(before=_suspend, after_in_parent=_resume, after_in_child=_drop)
