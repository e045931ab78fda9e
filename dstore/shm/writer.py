"""Writing one value into shared memory."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable

from dstore.shm import mapping
from dstore.shm.partial_files import NoRoom, PartialFile

RESERVE_BYTES = 16 << 20
"""Bytes that are reserved in one system call. A signal makes the system begin the call again, so
that a timer which is faster than the call would keep it from ever ending.
"""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
"""Errors after which evicting something may help."""

MakeRoom = Callable[[int, int], bool]
"""Tries to free, in the end, as many bytes as the first argument, and now, as the second.

Returns whether it freed any.
"""


class Writer:
    """Writes one value. A context manager: leaving it without :meth:`seal` abandons the value.

    Safe from any thread. Every method but :meth:`abandon` and :meth:`discard` raises NoRoom when
    the memory has been closed, in a forked child, and after :meth:`seal` or :meth:`abandon`.
    """

    def __init__(self, file: PartialFile, final: str, size: int, make_room: MakeRoom) -> None:
        self.size = size
        self.name = file.name
        self._file = file
        self._final = final
        self.make_room = make_room
        self._view = memoryview(b"")
        file.unreserved = size
        file.writer = weakref.ref(self)

    def __repr__(self) -> str:
        return f"<Writer of {self.size} bytes, {self.name}{' over' if self._file.over else ''}>"

    @property
    def reserved(self) -> int:
        """The memory of all bytes before this one is reserved."""
        return self.size - self._file.unreserved

    def reserve(self, end: int) -> None:
        """Reserve the memory of all bytes before ``end``. Raises NoRoom."""
        with self._file.descriptor() as descriptor:
            try:
                while self.reserved < end:
                    count = min(RESERVE_BYTES, end - self.reserved)
                    self._reserve(descriptor, count, end - self.reserved)
                    self._file.unreserved -= count
            except OSError as error:
                raise NoRoom(f"{self.size:,} bytes cannot be reserved: {error}") from error

    def _reserve(self, descriptor: int, count: int, needed: int) -> None:
        while True:
            try:
                os.posix_fallocate(descriptor, self.reserved, count)
                return
            except OSError as error:
                if error.errno not in FULL or not self.make_room(needed, needed):
                    raise

    def view(self) -> memoryview:
        """A read-only view of the reserved part of the value. Raises NoRoom."""
        if len(self._view) < self.reserved:
            with self._file.descriptor() as descriptor:
                try:
                    self._view = mapping.read_only(descriptor, self.reserved)
                except OSError as error:
                    raise NoRoom(f"{self.reserved:,} bytes cannot be mapped: {error}") from error
        return self._view

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset``. Raises ValueError if it reaches beyond ``size``."""
        left = memoryview(data).cast("B")
        end = offset + len(left)
        if offset < 0 or end > self.size:
            raise ValueError(f"{len(left)} bytes at {offset} are not within {self.size}")
        if end > self.reserved:
            self.reserve(min(self.size, max(end, self.reserved + RESERVE_BYTES)))
        with self._file.descriptor() as descriptor:
            try:
                while left:
                    written = os.pwrite(descriptor, left, offset)
                    offset += written
                    left = left[written:]
            except OSError as error:  # the file was cut short, and others have taken the memory
                raise NoRoom(f"{self.size:,} bytes cannot be written: {error}") from error

    def seal(self) -> memoryview:
        """Let the processes of this host find the value, and return it, read-only."""
        view = self.view()
        self.publish()
        return view

    def publish(self) -> bool:
        """Seal the value without a view of it. False if no process will find it, only views."""
        return self._file.seal(self._final)

    def abandon(self) -> None:
        """Give up, so that another may begin. Idempotent, and does nothing after :meth:`seal`."""
        self._file.abandon()

    def discard(self) -> None:
        """Remove the value after :meth:`seal`: no process will ask for it. Idempotent."""
        self._file.remove_sealed(self._final)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()
