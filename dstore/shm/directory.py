"""Folders that are held open, and the safe way to open the first of them.

Files are opened relative to an open folder, never by a path from the root. So the folder that was
checked is the folder that is used, whatever other processes rename meanwhile. The path to the first
folder is walked one name at a time. Each folder on it must belong to this user or to root, and must
not be writable by others, unless it is sticky, as /tmp and /dev/shm are: there others can create
names and cannot replace ours. A symbolic link on the path must belong to this user or to root as
well. So no other user can lead this process elsewhere.

This user and root are trusted: other processes of this user can do anything to the files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Iterator

LINKS_MAX = 40
"""Symbolic links that may be on a path; Linux has the same limit."""
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Enough to walk on and to look names up. A folder that may not be listed can be on a path.
_WALK = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)


class Unusable(Exception):
    """This folder cannot be used for shared memory. The message says why."""


class Unsafe(Unusable):
    """Other users than this one and root decide what is in this folder."""


class Directory:
    """A folder that is held open. ``path`` is the path it had then, for messages.

    The descriptor is closed with the last reference to this object, or by ``close``. (The number
    of a closed descriptor may be another file's the next moment, while threads still use it.)
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.close = weakref.finalize(self, os.close, fd)
        self.close.atexit = False

    def open_folder(self, name: str) -> Directory:
        """Open a folder in this one. Raises OSError."""
        path = os.path.join(self.path, name)
        return Directory(os.open(name, _WALK, dir_fd=self.fd), path)

    def make_folder(self, name: str) -> None:
        """Create a folder in this one, for this user alone, unless the name exists."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)

    def open_private(self, name: str) -> Directory:
        """Open a folder in this one that is this user's alone. Raises Unusable and OSError."""
        try:
            found = self.open_folder(name)
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
        """Whether ``name`` in this folder is the folder ``other``."""
        try:
            there = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(other.fd))

    @contextlib.contextmanager
    def listed(self, name: str = ".") -> Iterator[Iterator[os.DirEntry[str]]]:
        """The entries of this folder, or of one in it. They have names and no paths."""
        listing = Directory(os.open(name, os.O_RDONLY | _FOLDER, dir_fd=self.fd), name)
        try:
            with os.scandir(listing.fd) as entries:
                yield entries
        finally:
            listing.close()

    def remove_tree(self, name: str) -> None:
        """Remove a folder in this one with all its contents. What cannot be removed stays."""
        with contextlib.suppress(OSError):
            folder = self.open_folder(name)
            with folder.listed() as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for inner, is_folder in found:
                if is_folder:
                    folder.remove_tree(inner)
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(inner, dir_fd=folder.fd)
            os.rmdir(name, dir_fd=self.fd)


def walk(path: str) -> Directory:
    """Open the folder with this absolute path. Raises Unsafe and OSError."""
    top = here = Directory(os.open("/", _WALK), "/")
    # In a user namespace root has another number: that of the owner of /.
    trusted = {0, os.geteuid(), os.fstat(top.fd).st_uid}
    left = path.split("/")[::-1]
    links = 0
    _check(here, trusted)
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            here = here.open_folder(name)
            _check(here, trusted)
            continue
        links += 1
        if links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if status.st_uid not in trusted:
            link = os.path.join(here.path, name)
            raise Unsafe(f"{link} is a symbolic link of user {status.st_uid}")
        target = os.readlink(name, dir_fd=here.fd)
        left += target.split("/")[::-1]
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
