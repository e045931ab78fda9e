"""Making room: the least recently touched copies are evicted first.

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
from collections.abc import Callable
from typing import NamedTuple

from dstore.runtime.background import janitor
from dstore.shm.directory import Directory
from dstore.shm.folder import Folder
from dstore.shm.layout import COPIES, PART_NAME, SEALED_NAME

EXTRA_DIVISOR = 16
"""1 / EXTRA_DIVISOR of the bytes is evicted beyond what is needed, if files are small enough."""


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
    """Bytes that are used in the file system, by anybody. Infinity for a tmpfs without a size."""
    status = os.statvfs(here.fd)
    taken = status.f_frsize * (status.f_blocks - status.f_bfree)
    return taken if status.f_blocks else float("inf")


def free(here: Directory) -> float:
    """Bytes that are free in the file system. Infinity for a tmpfs without a size."""
    status = os.statvfs(here.fd)
    return status.f_frsize * status.f_bavail if status.f_blocks else float("inf")


def keep_limit(folder: Folder, mine: str, size: int, limit: int) -> int | None:
    """Evict until all copies are within ``limit``, counting ``mine`` with ``size`` bytes.

    Returns how many bytes are left at least. Returns None and evicts nothing if other processes are
    writing too much for that.
    """
    taken = used(folder.directory)
    if taken <= limit:
        return int(limit - taken)
    folder.partial_files.sweep()
    unfinished, copies = _list(folder.directory, mine)
    if unfinished + size > limit:
        return None
    total = unfinished + size + sum(copy.size for copy in copies)
    if total > limit:
        total -= _evict(
            folder.directory, copies, lambda freed: total - freed <= limit, limit // EXTRA_DIVISOR
        )
    return limit - total


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
    """Evict copies until it is ``enough``, at least one, then at most ``extra`` bytes more.

    ``enough`` is called with the bytes that were evicted. Returns these.
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
    """The bytes in partial copies other than ``mine``, and the sealed ones, oldest use first.

    Files with other names are not dstore's: they are not counted, and stay.
    """
    unfinished, copies = 0, []
    with here.listed(COPIES) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            name = f"{COPIES}/{entry.name}"
            if not stat.S_ISREG(status.st_mode):
                continue
            if SEALED_NAME.fullmatch(entry.name):
                copies.append(Copy(status.st_mtime_ns, name, status.st_size))
            elif PART_NAME.fullmatch(entry.name) and name != mine:
                unfinished += status.st_size
    return unfinished, sorted(copies)
