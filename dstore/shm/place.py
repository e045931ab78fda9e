"""Folders that are held open, and the way to them.

Files are opened relative to a folder that is open, never by a path from the root: what was checked
is what is used, whatever others rename meanwhile. The way to the first of these folders is walked
one name at a time. Each folder on it must belong to this user or to root, and must not be writable
by others, unless it is sticky, as /tmp and /dev/shm are: there others can make names and cannot
replace ours. So nobody else can lead this process elsewhere. A symbolic link on the way must
belong to this user or to root as well.

What is trusted is this user, and root. Other processes of this user can do anything to the files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Iterator

LINKS_MAX = 40
"""Symbolic links that may be on the way; the system has the same limit."""
_CHECKED = (os.open, os.mkdir, os.stat, os.rename, os.unlink, os.rmdir, os.readlink, os.utime)
AVAILABLE = os.supports_dir_fd.issuperset(_CHECKED) and os.scandir in os.supports_fd
"""Whether this system can open files relative to a folder."""


def _flags(*names: str) -> int:
    return sum(getattr(os, name, 0) for name in names)


_FOLDER = _flags("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
_WAY = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)
"""To walk on and to look names up; a folder that may not be listed can be on the way."""
FILE = _flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK")
"""For files: a pipe in the place of one must not hold us up."""


class Unusable(Exception):
    """There is no shared memory to be had in this place. The message says why."""


class Unsafe(Unusable):
    """Others than this user and root decide what is in this place."""


class Directory:
    """A folder that is held open. ``path`` is what it was called, for messages.

    The descriptor is closed with the last reference, since the number of a closed one may be
    another file's the next moment, and other threads may be using it; or by ``close``.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.close = weakref.finalize(self, os.close, fd)
        self.close.atexit = False

    def __repr__(self) -> str:
        return f"<Directory {self.path}>"

    def enter(self, name: str) -> Directory:
        """A folder in this one."""
        path = os.path.join(self.path, name)
        return Directory(os.open(name, _WAY, dir_fd=self.fd), path)

    def make(self, name: str) -> None:
        """Make a folder in this one, for this user alone, unless there is something."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)

    def own(self, name: str) -> Directory:
        """A folder in this one that belongs to this user alone.

        Raises Unusable if it is something else, FileNotFoundError, OSError.
        """
        try:
            found = self.enter(name)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise Unusable(f"{os.path.join(self.path, name)} is not a folder") from None
            raise
        status = os.fstat(found.fd)
        if status.st_uid != os.geteuid():
            raise Unusable(f"{found.path} belongs to user {status.st_uid}")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise Unusable(f"{found.path} is open to others (mode {mode:o})")
        return found

    def has(self, name: str, other: Directory) -> bool:
        """Whether the other one is what has this name here."""
        try:
            there = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(other.fd))

    @contextlib.contextmanager
    def listed(self, name: str = ".") -> Iterator[Iterator[os.DirEntry[str]]]:
        """What is in this folder, or in one in it. The entries have no paths, only names."""
        listing = Directory(os.open(name, os.O_RDONLY | _FOLDER, dir_fd=self.fd), name)
        try:
            with os.scandir(listing.fd) as entries:
                yield entries
        finally:
            listing.close()

    def remove(self, name: str) -> None:
        """Remove a folder in this one with all that is in it, as far as that can be done."""
        with contextlib.suppress(OSError):
            folder = self.enter(name)
            with folder.listed() as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for inner, is_folder in found:
                if is_folder:
                    folder.remove(inner)
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(inner, dir_fd=folder.fd)
            os.rmdir(name, dir_fd=self.fd)


def walk(path: str) -> Directory:
    """The folder with this absolute path. Raises Unsafe, OSError."""
    top = here = Directory(os.open("/", _WAY), "/")
    # In a user namespace root has another number, the one that / belongs to.
    trusted = {0, os.geteuid(), os.fstat(top.fd).st_uid}
    ahead = path.split("/")[::-1]
    links = 0
    _check(here, trusted)
    while ahead:
        name = ahead.pop()
        if name in ("", "."):
            continue
        status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            here = here.enter(name)
            _check(here, trusted)
            continue
        links += 1
        if links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if status.st_uid not in trusted:
            link = os.path.join(here.path, name)
            raise Unsafe(f"{link} is a symbolic link of user {status.st_uid}")
        target = os.readlink(name, dir_fd=here.fd)
        ahead += target.split("/")[::-1]
        here = top if target.startswith("/") else here
    return here


def _check(folder: Directory, trusted: set[int]) -> None:
    status = os.fstat(folder.fd)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in trusted:
        raise Unsafe(
            f"{folder.path} belongs to user {status.st_uid}, who may replace what is in it"
        )
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        raise Unsafe(
            f"others may write in {folder.path} (mode {mode:o}) and replace what is in it; make it "
            f"yours alone (chmod go-w) or sticky, as /tmp is (chmod +t)"
        )


def check_file(status: os.stat_result) -> None:
    """Raise OSError unless an open file is a regular one that only this user can write."""
    mode = status.st_mode
    if not stat.S_ISREG(mode) or status.st_uid != os.geteuid() or mode & 0o022:
        raise OSError(errno.EPERM, "this is no file of dstore's")
