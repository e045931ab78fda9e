"""Making room for values: the least recently touched copies are evicted first.

Only sealed files in ``copies/`` are evicted, and to evict is to unlink: a process that has the file
mapped keeps it unharmed. Several processes may do this at the same time, so listed files may be
gone already; then they take no room either.

To list a hundred thousand small files takes a while. So a little more than needed is evicted, and
nothing is listed while the file system as a whole, or what this process has added since the last
list, shows that there is room.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from dstore.runtime.background import janitor
from dstore.shm import locks, writer
from dstore.shm.directory import Directory
from dstore.shm.files import COPIES, PART_NAME, SEALED_NAME
from dstore.shm.folder import Folder
from dstore.shm.partial_files import NoRoom
from dstore.shm.writer import Writer

EXTRA_DIVISOR = 16
"""1 / EXTRA_DIVISOR of the bytes is evicted beyond what is needed, if files are small enough."""
SPARE_DIVISOR = 16
"""A process may add 1 / SPARE_DIVISOR of what the limit leaves before it lists the files again. If
more processes than that do so at the same time, the limit may be exceeded, until one of them looks.
"""
RELEASE_TIMEOUT = 0.1
"""Seconds for which Global waits for shared memory that is being released."""
FULL_RETRY_SECONDS = 1.0
"""Seconds after Global found shared memory full before it tries to make room again."""


class Room:
    """Reserves memory for the values that one process writes. Safe from any thread.

    ``limit`` is how many bytes the copies on this host may take. There is no limit on Global's own
    values, but Global must not stand still: it waits briefly, and does not look for room again and
    again where there is none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._full_until = 0.0
        self._spare = 0  # bytes that may be added before the limit is checked again

    def make(self, folder: Folder, for_global: bool, needed: int, now: int) -> bool:
        """Make room for a Writer; see :data:`~dstore.shm.writer.MakeRoom`."""
        if not folder.alive:
            return False
        if not for_global:
            return make_room(folder, needed, now)
        if time.monotonic() < self._full_until:
            return False
        made = make_room(folder, needed, now, RELEASE_TIMEOUT)
        if not made:
            self._full_until = time.monotonic() + FULL_RETRY_SECONDS
        return made

    def reserve_first(self, folder: Folder, value: Writer) -> None:
        """Reserve the first part of a value of Global's. Raises NoRoom if the whole cannot fit."""
        self._reserve(folder, value, min(value.size, writer.RESERVE_BYTES))

    def reserve_copy(self, folder: Folder, copy: Writer) -> None:
        """Reserve the memory of a copy. Raises NoRoom.

        The limit is checked after that: of two processes that do this at the same time, at least
        one sees the other's file.
        """
        self._reserve(folder, copy, copy.size)
        copy.view()  # now, since this may fail as well, and sealing must not
        self._keep_limit(folder, copy.name, copy.size)

    def keep_limit(self, folder: Folder, name: str, size: int) -> None:
        """Keep the limit with a copy that has come from another folder. Raises NoRoom."""
        self._keep_limit(folder, name, size)

    def _reserve(self, folder: Folder, value: Writer, count: int) -> None:
        needed = folder.partial_files.unreserved()
        if free(folder.directory) < needed and not value.make_room(needed, count):
            raise NoRoom(f"{value.size:,} bytes do not fit into the file system")
        value.reserve(count)

    def _keep_limit(self, folder: Folder, name: str, size: int) -> None:
        """Evict until all copies are within the limit, counting ``name`` with ``size`` bytes.

        Raises NoRoom and evicts nothing if other processes are writing too much for that.
        """
        with locks.process_lock:
            self._spare -= size
            if self._spare >= 0:
                return
        here = folder.directory
        total = used(here)
        if total > self.limit:
            folder.partial_files.sweep()
            unfinished, copies = _list(here, name)
            if unfinished + size > self.limit:
                raise NoRoom(f"others are writing so much that {size:,} bytes exceed the limit")
            total = unfinished + size + sum(copy.size for copy in copies)
            if total > self.limit:
                excess = total - self.limit
                extra = self.limit // EXTRA_DIVISOR
                total -= _evict(here, copies, lambda freed: freed >= excess, extra)
        self._spare = int(self.limit - total) // SPARE_DIVISOR


class Copy(NamedTuple):
    """A sealed file that may be evicted. Copies compare by the time of their last use."""

    touched: int
    name: str
    size: int


def limit_default(path: str) -> int:
    """Half of the file system, in bytes; half of the machine's memory if it has no size."""
    status = os.statvfs(path)
    total = status.f_frsize * status.f_blocks
    return (total or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2


def used(here: Directory) -> float:
    """Bytes that are used in the file system. Infinity for a tmpfs without a size."""
    status = os.statvfs(here.fd)
    taken = status.f_frsize * (status.f_blocks - status.f_bfree)
    return taken if status.f_blocks else float("inf")


def free(here: Directory) -> float:
    """Bytes that are free in the file system. Infinity for a tmpfs without a size."""
    status = os.statvfs(here.fd)
    return status.f_frsize * status.f_bavail if status.f_blocks else float("inf")


def make_room(folder: Folder, needed: int, now: int, timeout: float | None = None) -> bool:
    """Evict until the file system has ``now`` bytes free. Returns whether anything was removed.

    First it waits for what the janitor is about to release, at most ``timeout`` seconds; if the
    janitor has not finished by then, nothing is evicted. Nothing is evicted, either, if all copies
    together are less than ``needed``. Room may still be missing afterwards: the system frees the
    memory of a mapped copy when its last reader has gone.
    """
    here = folder.directory
    swept = folder.partial_files.sweep()
    if (janitor.wait(timeout) or swept) and free(here) >= needed:
        return True
    if timeout is not None and janitor.busy:
        return False
    _, copies = _list(here, "")
    total = sum(copy.size for copy in copies)
    if free(here) + total < needed:
        return False
    return _evict(here, copies, lambda _: free(here) >= now, total // EXTRA_DIVISOR) > 0


def _evict(here: Directory, copies: list[Copy], enough: Callable[[int], bool], extra: int) -> int:
    """Evict copies until the bytes are ``enough``, at least one, then at most ``extra`` bytes more.

    Returns how many bytes were evicted.
    """
    freed = 0
    for copy in copies:
        if freed and enough(freed):
            extra -= copy.size
            if extra < 0:
                break
        with contextlib.suppress(OSError):
            os.unlink(copy.name, dir_fd=here.fd)
        freed += copy.size
    return freed


def _list(here: Directory, mine: str) -> tuple[int, list[Copy]]:
    """The bytes in partial copies, and the sealed ones, oldest use first; without ``mine``."""
    unfinished, copies = 0, []
    with here.listed(COPIES) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            name = f"{COPIES}/{entry.name}"
            if name == mine:
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            if SEALED_NAME.fullmatch(entry.name):
                copies.append(Copy(status.st_mtime_ns, name, status.st_size))
            elif PART_NAME.fullmatch(entry.name):
                unfinished += status.st_size
    return unfinished, sorted(copies)
