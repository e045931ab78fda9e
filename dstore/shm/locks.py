"""POSIX record locks, and what this process holds by them.

A lock says that a process lives: it falls when the process ends, however it ends, and a forked
child does not inherit it. (A lock of ``flock`` would live on in the child.) Two traps come with
that:

- Locks exclude processes, not threads. So threads of one process exclude each other with
  ``held.lock``, and look in ``held`` before they try for a lock in the file system.
- When a process closes *any* descriptor of a file, all its locks on that file fall. So a file
  that is locked here is opened nowhere else in this process: ``held`` knows the lock files of
  the folders that were entered, and each folder knows the unfinished files that it writes.

Descriptors are owned by file objects, so that one which is lost on the way, in a
KeyboardInterrupt, is closed by the garbage collector.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

from dstore.runtime import native
from dstore.shm import place
from dstore.shm.place import Directory

if TYPE_CHECKING:
    from dstore.shm.folder import Folder

try:
    import fcntl
except ImportError:  # Windows
    AVAILABLE = False
    """Whether this system has what this room is built on."""
else:
    # macOS cannot reserve a file in full.
    AVAILABLE = hasattr(os, "posix_fallocate") and place.AVAILABLE

Identity = tuple[int, int]
"""Device and inode: which file it is, by whatever path."""


class Held:
    """The folders that this process has entered. ``lock`` guards them and their files.

    It may be taken again by the thread that has it: a destructor or a signal handler that runs in
    between may close things.
    """

    def __init__(self) -> None:
        self.lock = native.RLock()
        self.folders: dict[Identity, Folder] = {}

    def __repr__(self) -> str:
        return f"<Held {list(self.folders.values())}>"

    def find(self, here: Directory, lock: str) -> Folder | None:
        """The folder that has this lock file, if this process has entered it."""
        try:
            status = os.stat(lock, dir_fd=here.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self.folders.get(identity(status))

    def forked(self) -> None:
        """In the child: no lock is ours. Closing the descriptors does not touch the parent's."""
        self.lock = native.RLock()
        folders, self.folders = self.folders, {}
        for folder in folders.values():
            folder.forked()


held = Held()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=held.forked)


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def open_file(here: Directory, name: str, *, create: bool) -> io.FileIO:
    """Open a file to be locked, for reading and writing. Made with mode 0600 if it is missing."""
    return _opened(here, name, "r+", os.O_CREAT if create else 0)


def open_sealed(here: Directory, name: str) -> io.FileIO:
    """Open a file for reading: one that nobody locks any more."""
    return _opened(here, name, "r", 0)


def _opened(here: Directory, name: str, mode: str, more: int) -> io.FileIO:
    more |= place.FILE
    file = io.FileIO(
        name, mode, opener=lambda name, flags: os.open(name, flags | more, 0o600, dir_fd=here.fd)
    )
    try:
        place.check_file(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def is_linked(file: io.FileIO, here: Directory, name: str) -> bool:
    """Whether the file still has this name in the folder: it may have been removed or replaced."""
    try:
        there = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return identity(os.fstat(file.fileno())) == identity(there)


def try_shared(file: io.FileIO) -> bool:
    """Get the lock along with others. False if somebody has it alone."""
    return _try(file, fcntl.LOCK_SH)


def try_exclusive(file: io.FileIO) -> bool:
    """Get the lock alone. False if somebody else has it."""
    return _try(file, fcntl.LOCK_EX)


def release(file: io.FileIO) -> None:
    fcntl.lockf(file, fcntl.LOCK_UN)


def _try(file: io.FileIO, kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
