"""Making room: what was touched least recently goes first.

Only sealed files in ``copies/`` are evicted, and to evict is to unlink: whoever has a file mapped
keeps it unharmed. Several processes may do this at the same time, so that files that are listed
may be gone; then they take no room either.

To list a hundred thousand small files takes a while. So a little more than needed is evicted,
and no list is made as long as the file system as a whole, or what this process has added since
the last list, shows that there is room.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable
from typing import NamedTuple

from dstore.runtime.background import janitor
from dstore.shm import parts
from dstore.shm.folder import COPIES, Folder
from dstore.shm.parts import PART_NAME
from dstore.shm.place import Directory

SEALED_NAME = re.compile("[0-9a-f]{32}")
EXTRA = 16
"""Beyond what is needed, this fraction is evicted, if files are small enough for that."""


class Copy(NamedTuple):
    """A sealed file that may be evicted. They compare by recency."""

    touched: int
    name: str
    size: int


def limit_default(path: str) -> int:
    """Half of the file system, in bytes; half of the machine's memory if that has no size."""
    status = os.statvfs(path)
    total = status.f_frsize * status.f_blocks
    return (total or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2


def used(place: Directory) -> float:
    """How many bytes the file system holds, of whomever. A tmpfs without a size does not tell."""
    status = os.statvfs(place.fd)
    taken = status.f_frsize * (status.f_blocks - status.f_bfree)
    return taken if status.f_blocks else float("inf")


def free(place: Directory) -> float:
    """How many bytes the file system has left. A tmpfs without a size has no end."""
    status = os.statvfs(place.fd)
    return status.f_frsize * status.f_bavail if status.f_blocks else float("inf")


def keep_limit(folder: Folder, mine: str, size: int, limit: int) -> int | None:
    """Evict until all copies are within ``limit``, ``mine`` being one that will have ``size``.

    How many bytes are at least left. None, and nothing is evicted, if it cannot be done, because
    of what others are writing.
    """
    taken = used(folder.here)
    if taken <= limit:
        return int(limit - taken)
    parts.sweep(folder)
    unfinished, copies = _listed(folder.here, mine)
    if unfinished + size > limit:
        return None
    total = unfinished + size + sum(copy.size for copy in copies)
    if total > limit:
        total -= _evict(folder.here, copies, lambda freed: total - freed <= limit, limit // EXTRA)
    return limit - total


def make_room(folder: Folder, needed: int, now: int, stall_timeout: float | None = None) -> bool:
    """Evict until the file system has ``now`` bytes left. Whether anything was removed.

    What the janitor is about to give back comes first; ``stall_timeout`` is how many seconds that may
    take, else nothing is removed. Nothing is evicted, either, if all copies together would not be
    enough for all that is ``needed``. They may still not be
    enough, if they are mapped: the system gives back their memory when the last reader has gone.
    """
    swept = parts.sweep(folder)
    if (janitor.wait(stall_timeout) or swept) and free(folder.here) >= needed:
        return True
    if stall_timeout is not None and janitor.busy:
        return False
    _, copies = _listed(folder.here, "")
    total = sum(copy.size for copy in copies)
    if free(folder.here) + total < needed:
        return False
    return _evict(folder.here, copies, lambda _: free(folder.here) >= now, total // EXTRA) > 0


def _evict(here: Directory, copies: list[Copy], enough: Callable[[int], bool], extra: int) -> int:
    """Evict at least one, as many as it takes, and ``extra`` bytes at most. How many bytes."""
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


def _listed(here: Directory, mine: str) -> tuple[int, list[Copy]]:
    """The bytes in unfinished files but for ``mine``; the others, least recently touched first.

    What has not the name of a file of ours was left there by somebody, and stays.
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
