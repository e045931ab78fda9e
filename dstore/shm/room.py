"""Reserves memory for the values that one process writes, and keeps the limit on copies."""

from __future__ import annotations

import time

from dstore.shm import eviction, locks, writer
from dstore.shm.folder import Folder
from dstore.shm.partial_files import NoRoom
from dstore.shm.writer import MakeRoom, Writer

SPARE_DIVISOR = 16
"""A process may add 1 / SPARE_DIVISOR of what the limit leaves before it lists the files again. If
more processes than that do so at the same time, the limit may be exceeded, until one of them looks.
"""
RELEASE_TIMEOUT = 0.1
"""Seconds for which Global waits for shared memory that is being released."""
FULL_RETRY_SECONDS = 1.0
"""Seconds after Global found shared memory full before it tries to make room again."""


class Room:
    """Reserves the memory of values. Safe from any thread.

    ``limit`` is how many bytes the copies on this host may take. There is no limit on Global's own
    values, but Global must not stand still: it waits briefly, and does not look for room again and
    again where there is none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._full_until = 0.0
        self._spare = 0  # bytes that may be added before the limit is checked again

    def __repr__(self) -> str:
        return f"<Room limit={self.limit} spare={self._spare}>"

    def maker(self, folder: Folder, *, for_global: bool) -> MakeRoom:
        """The function by which a Writer makes room in this folder."""

        def make_room(needed: int, now: int) -> bool:
            return folder.alive and eviction.make_room(folder, needed, now)

        def make_room_for_global(needed: int, now: int) -> bool:
            if time.monotonic() < self._full_until:
                return False
            if folder.alive and eviction.make_room(folder, needed, now, RELEASE_TIMEOUT):
                return True
            self._full_until = time.monotonic() + FULL_RETRY_SECONDS
            return False

        return make_room_for_global if for_global else make_room

    def reserve_copy(self, folder: Folder, copy: Writer, name: str) -> None:
        """Reserve the memory of a copy, whose partial file is ``name``. Raises NoRoom.

        The limit is checked after that: of two processes that do this at the same time, at least
        one sees the other's file.
        """
        self._reserve(folder, copy, copy.size)
        copy.view()  # now, since this may fail as well, and sealing must not
        self._keep_limit(folder, name, copy.size)

    def reserve_first(self, folder: Folder, value: Writer) -> None:
        """Reserve the first part of a value of Global's. Raises NoRoom if the whole cannot fit."""
        self._reserve(folder, value, min(value.size, writer.RESERVE_BYTES))

    def _reserve(self, folder: Folder, value: Writer, count: int) -> None:
        needed = folder.partial_files.unreserved()
        if eviction.free(folder.directory) < needed and not value.make_room(needed, count):
            raise NoRoom(f"{value.size:,} bytes do not fit into the file system")
        value.reserve(count)

    def _keep_limit(self, folder: Folder, name: str, size: int) -> None:
        with locks.process_lock:
            self._spare -= size
            if self._spare >= 0:
                return
        left = eviction.keep_limit(folder, name, size, self.limit)
        if left is None:
            raise NoRoom(f"others are writing so much that {size:,} bytes exceed the limit")
        self._spare = left // SPARE_DIVISOR
