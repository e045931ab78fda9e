"""Opening, removing and touching files in a folder that is held open.

Open files are file objects, not bare descriptors: one that is lost on the way, for example in a
KeyboardInterrupt, is closed by the garbage collector.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import time

from dstore.runtime.background import BACKGROUND_BYTES, janitor
from dstore.shm import mapping
from dstore.shm.directory import Directory, open_flags

_FLAGS = open_flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK")  # a named pipe must not block us


def open_writable(here: Directory, name: str, *, create: bool) -> io.FileIO:
    """Open a file for reading and writing, to lock it. ``create``: if missing, with mode 0600."""
    return _open(here, name, "r+", os.O_CREAT if create else 0)


def open_sealed(here: Directory, name: str) -> io.FileIO:
    """Open a sealed file for reading; sealed files are not locked."""
    return _open(here, name, "r", 0)


def _open(here: Directory, name: str, mode: str, more: int) -> io.FileIO:
    more |= _FLAGS
    file = io.FileIO(
        name, mode, opener=lambda name, flags: os.open(name, flags | more, 0o600, dir_fd=here.fd)
    )
    try:
        _check(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _check(status: os.stat_result) -> None:
    """Raise OSError unless this is a regular file that only this user can write."""
    mode = status.st_mode
    if not stat.S_ISREG(mode) or status.st_uid != os.geteuid() or mode & 0o022:
        raise OSError(errno.EPERM, "this is not a file of dstore")


def status(here: Directory, name: str) -> os.stat_result | None:
    """The status of what has this name. None if there is nothing, or it cannot be known."""
    try:
        return os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    except OSError:
        return None


def is_linked(file: io.FileIO, here: Directory, name: str) -> bool:
    """Whether an open file still has this name: it may have been removed or replaced."""
    try:
        there = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


def remove(here: Directory, name: str) -> None:
    """Remove a sealed file, if it is there."""
    with contextlib.suppress(OSError), open_sealed(here, name) as file:
        unlink(here, name, file)
        return
    with contextlib.suppress(OSError):  # it cannot be opened, as when no descriptors are left
        os.unlink(name, dir_fd=here.fd)


def unlink(here: Directory, name: str, file: io.FileIO) -> None:
    """Remove the name of an open file. The memory of a large one is freed in the background."""
    kept = None
    if os.fstat(file.fileno()).st_size >= BACKGROUND_BYTES:
        # A mapping keeps the memory until the janitor releases it.
        with contextlib.suppress(OSError):
            kept = mapping.read_only(file.fileno(), 1)
    os.unlink(name, dir_fd=here.fd)
    if kept is not None:
        janitor.do(kept.release)


def touch(file: int | str, here: Directory | None = None) -> None:
    """Record that a file was used now; evictions go by that. ``file``: a descriptor, or a name."""
    now = time.time_ns()  # without an explicit time the file system takes one that is too coarse
    os.utime(file, ns=(now, now), dir_fd=None if here is None else here.fd)
