"""Unfinished files, and who writes them.

A file is written under the name ``<token>.part``, and locked by its writer as long as it is
written. So one process on the host writes it, and when that one dies, the lock falls and the next
one that asks takes over. Sealing gives the file its final name; from then on it never changes.

Who gets the lock may have opened the file before its writer sealed or abandoned it. So, with the
lock, one looks whether the file is still the one in the folder.

A :class:`Part` belongs to the folder, a :class:`Writer` to the caller. When the Writer is lost, in
a KeyboardInterrupt perhaps, the Part shows it, and goes at the next opportunity.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType

from dstore.runtime.background import MUCH, janitor
from dstore.shm import folder, locks, mapping
from dstore.shm.folder import Folder
from dstore.shm.locks import held
from dstore.shm.place import Directory

PART = ".part"
PART_NAME = re.compile("[0-9a-f]{32}[.]part")
CLAIM_TRIES = 100
"""How often the file to be claimed may turn out to be gone before one leaves it to others."""
RESERVE_BYTES = 16 << 20
"""So much is reserved in one call. A signal that comes in between makes the system begin the call
again, and a timer that is faster than the call would keep it from ever ending.
"""
EMPTY_SECONDS = 60.0
"""So old an empty file is that is not just being claimed."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
"""What the system says when evicting something may help."""

MakeRoom = Callable[[int, int], bool]
"""Tries to free room for so many bytes, the second number of them at once. Whether it has."""


class NoRoom(Exception):
    """The value does not fit into shared memory, or there is none any more.

    Internal: who asked keeps the value in memory of its own.
    """


class Part:
    """An unfinished file that this process writes, and has locked. Safe from any thread."""

    def __init__(self, folder: Folder, name: str, file: io.FileIO, owner: object) -> None:
        self.name = name
        self.owner = owner
        self.over = False
        self.writer: weakref.ref[Writer] | None = None
        self._folder = folder
        self._file = file
        self._uses = 0
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<Part {self._folder.path}/{self.name}{' over' if self.over else ''}>"

    @property
    def lost(self) -> bool:
        """Whether nobody can write this any more."""
        return self.writer is not None and self.writer() is None

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """The descriptor, to be used without ``held.lock``: it stays open meanwhile.

        Raises NoRoom if the part is over.
        """
        with held.lock:
            self._check()
            self._uses += 1
        try:
            yield self._file.fileno()
        finally:
            with held.lock:
                self._uses -= 1
                self._close_if_unused()

    def seal(self, final: str) -> bool:
        """Give the file its final name.

        False if that fails, because somebody has removed the whole folder: the views of it are as
        good as ever, and nobody else will find it. Raises NoRoom if the part is over.
        """
        named = False
        with held.lock:
            self._check()
            with contextlib.suppress(OSError):
                if locks.is_linked(self._file, self._folder.here, self.name):
                    # Not read-only before: a file of a writer that dies in between could not be
                    # opened for writing, and so not be locked, by the next one.
                    here = self._folder.here.fd
                    os.rename(self.name, final, src_dir_fd=here, dst_dir_fd=here)
                    named = True
                    os.fchmod(self._file.fileno(), 0o400)
                    touch(self._file.fileno())
            self.abandon()
        return named

    def abandon(self) -> None:
        """Unlink what is not sealed, give up the lock. Idempotent."""
        with held.lock:
            if self.over:
                return
            with contextlib.suppress(OSError):
                if locks.is_linked(self._file, self._folder.here, self.name):
                    unlink(self._folder.here, self.name, self._file)
            self.over = True
            self._folder.parts.pop(self.name, None)
            self._close_if_unused()

    def withdraw(self, final: str) -> None:
        """Remove what has been sealed, also when the folder has been left. Idempotent."""
        if self._process == os.getpid():
            remove(self._folder.here, final)

    def forked(self) -> None:
        """In the child: the parent goes on writing."""
        self.over = True
        self._file.close()

    def _check(self) -> None:
        if self.over:
            raise NoRoom("this is written no more: sealed, abandoned, closed, or the parent's")

    def _close_if_unused(self) -> None:
        """Not while a thread writes: the number of the descriptor would soon be another file's."""
        if self.over and not self._uses:
            self._file.close()


class Writer:
    """Writes one value. A context manager: leaving it without :meth:`seal` abandons the value.

    Safe from any thread. Every method but :meth:`abandon` raises NoRoom when the memory has been
    closed, in a forked child, and after :meth:`seal` or :meth:`abandon`.
    """

    def __init__(self, part: Part, final: str, size: int, make_room: MakeRoom) -> None:
        self.size = size
        self.reserved = 0
        self._part = part
        self._final = final
        self._make_room = make_room
        self._view = memoryview(b"")
        part.writer = weakref.ref(self)

    def __repr__(self) -> str:
        return f"<Writer of {self.size} bytes, {self._part!r}>"

    def reserve(self, end: int) -> None:
        """Make sure of the memory of all bytes before ``end``. Raises NoRoom."""
        with self._part.descriptor() as descriptor:
            try:
                while self.reserved < end:
                    count = min(RESERVE_BYTES, end - self.reserved)
                    self._reserve(descriptor, count, end - self.reserved)
                    self.reserved += count
            except OSError as error:
                raise NoRoom(f"{self.size:,} bytes cannot be reserved: {error}") from error

    def _reserve(self, descriptor: int, count: int, needed: int) -> None:
        while True:
            try:
                os.posix_fallocate(descriptor, self.reserved, count)
                return
            except OSError as error:
                if error.errno not in FULL or not self._make_room(needed, needed):
                    raise

    def view(self) -> memoryview:
        """What is reserved of the value, read-only, as it is being written. Raises NoRoom."""
        if len(self._view) < self.reserved:
            with self._part.descriptor() as descriptor:
                try:
                    self._view = mapping.read_only(descriptor, self.reserved)
                except OSError as error:
                    raise NoRoom(f"{self.reserved:,} bytes cannot be mapped: {error}") from error
        return self._view

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``. Raises ValueError if it reaches beyond ``size``.

        What has not been reserved is so before it is written, a step at a time.
        """
        left = memoryview(data).cast("B")
        end = offset + len(left)
        if offset < 0 or end > self.size:
            raise ValueError(f"{len(left)} bytes at {offset} are not within {self.size}")
        if end > self.reserved:
            self.reserve(min(self.size, max(end, self.reserved + RESERVE_BYTES)))
        with self._part.descriptor() as descriptor:
            try:
                while left:
                    written = os.pwrite(descriptor, left, offset)
                    offset += written
                    left = left[written:]
            except OSError as error:  # somebody has cut the file short, and others have the room
                raise NoRoom(f"{self.size:,} bytes cannot be written: {error}") from error

    def seal(self) -> memoryview:
        """Let everybody on this host find the value. The value, read-only."""
        view = self.view()
        self.publish()
        return view

    def publish(self) -> bool:
        """The same for Global. False if nobody will find it: only a view of it has the bytes."""
        return self._part.seal(self._final)

    def view_if_possible(self) -> memoryview | None:
        """As :meth:`view`; None if it cannot be mapped."""
        with contextlib.suppress(NoRoom):
            return self.view()
        return None

    def abandon(self) -> None:
        """Give up; the next one may begin afresh. Idempotent, and nothing after :meth:`seal`."""
        self._part.abandon()

    def withdraw(self) -> None:
        """Remove what was sealed: nobody will ask for it. Idempotent, at any time."""
        self._part.withdraw(self._final)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abandon()


def claim(entered: Folder, name: str, owner: object) -> Part | None:
    """Become the one who writes the file with this name. None if somebody else does.

    What a dead writer has left is removed, and the file made anew. With ``held.lock``.
    """
    mine = entered.parts.get(name)
    if mine is not None:
        if not mine.lost:
            return None
        mine.abandon()
    for _ in range(CLAIM_TRIES):
        file = locks.open_file(entered.here, name, create=True)
        part = None
        try:
            locked = locks.try_exclusive(file)
            if not locks.is_linked(file, entered.here, name):
                continue
            if not locked:
                return None
            if os.fstat(file.fileno()).st_size:
                unlink(entered.here, name, file)
                continue
            part = entered.parts[name] = Part(entered, name, file, owner)
            return part
        finally:
            if part is None:
                file.close()
    return None


def sweep(entered: Folder) -> bool:
    """Remove the unfinished files whose writers are dead or lost. Whether there were any."""
    swept = False
    with held.lock:
        for part in list(entered.parts.values()):
            if part.lost:
                part.abandon()
                swept = True
        for place in (folder.OWN, folder.COPIES):
            with contextlib.suppress(OSError), entered.here.listed(place) as entries:
                for entry in entries:
                    name = f"{place}/{entry.name}"
                    if PART_NAME.fullmatch(entry.name) and name not in entered.parts:
                        swept |= _remove_if_dead(entered.here, name)
    return swept


def _remove_if_dead(here: Directory, name: str) -> bool:
    """An empty file that is young may be one that is just being claimed: it is let be."""
    with contextlib.suppress(OSError):
        status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
        empty = not (status.st_size or status.st_blocks)
        if not empty or abs(time.time() - status.st_mtime) > EMPTY_SECONDS:
            with locks.open_file(here, name, create=False) as file:
                if locks.try_exclusive(file) and locks.is_linked(file, here, name):
                    unlink(here, name, file)
                    return True
    return False


def remove(here: Directory, name: str) -> None:
    """Remove a sealed file. That there is none is fine."""
    with contextlib.suppress(OSError), locks.open_sealed(here, name) as file:
        unlink(here, name, file)
        return
    with contextlib.suppress(OSError):  # as when there are no more descriptors
        os.unlink(name, dir_fd=here.fd)


def unlink(here: Directory, name: str, file: io.FileIO) -> None:
    """Remove the name of an open file. Much memory goes in the background: a mapping keeps it."""
    kept = None
    if os.fstat(file.fileno()).st_size >= MUCH:
        with contextlib.suppress(OSError):
            kept = mapping.read_only(file.fileno(), 1)
    os.unlink(name, dir_fd=here.fd)
    if kept is not None:
        janitor.do(kept.release)


def touch(file: int | str, here: Directory | None = None) -> None:
    """Note that a file was used just now. The system's own idea of now is too coarse."""
    now = time.time_ns()  # of the day; it only orders evictions
    os.utime(file, ns=(now, now), dir_fd=None if here is None else here.fd)
