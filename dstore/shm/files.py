"""Files in shared memory: their names, opening and removing them, and reading complete values.

::

    <root>/dstore-<uid>/            mode 0700
        <epoch, 16 hex digits>/
            lock                    every process that uses the epoch holds a shared lock on it
            global/                 values that belong to Global, never evicted
            copies/                 values that Nodes have written or fetched, evictable
                <token, 32 hex digits>          sealed: the whole value, which never changes
                <token, 32 hex digits>.part     partial: one process is writing it
        <epoch>.<16 hex digits>/    a folder that no process uses any more, being removed

Open files are file objects, not bare descriptors: one that is lost on the way, for example in a
KeyboardInterrupt, is closed by the garbage collector.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import time
from collections.abc import Callable

from dstore.runtime.background import BACKGROUND_BYTES, janitor
from dstore.shm import mapping
from dstore.shm.directory import Directory

LOCK, GLOBAL, COPIES = "lock", "global", "copies"
PART = ".part"
TOKEN_BYTES = 16

EPOCH_NAME = re.compile("[0-9a-f]{16}")
REMOVED_NAME = re.compile("[0-9a-f]{16}[.][0-9a-f]{16}")
"""The epoch and a random number."""
SEALED_NAME = re.compile("[0-9a-f]{32}")
PART_NAME = re.compile("[0-9a-f]{32}[.]part")

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe must not block us


def user_folder() -> str:
    """The folder in the root that has all epochs of this user."""
    return f"dstore-{os.geteuid()}"


def sealed_name(token: bytes, *, for_global: bool) -> str:
    """The sealed file of Global's value or of a copy. Raises ValueError if this is no token."""
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")
    return f"{GLOBAL if for_global else COPIES}/{token.hex()}"


# ---- any file ---------------------------------------------------------------------------------


def open_writable(here: Directory, name: str, *, create: bool) -> io.FileIO:
    """Open a file for reading and writing, to lock it. ``create``: if missing, with mode 0600."""
    return _open(here, name, "r+", os.O_CREAT if create else 0)


def create(here: Directory, name: str) -> io.FileIO:
    """Create a file with mode 0600 and open it for reading and writing. Raises FileExistsError."""
    return _open(here, name, "r+", os.O_CREAT | os.O_EXCL)


def open_sealed(here: Directory, name: str) -> io.FileIO:
    """Open a sealed file for reading; sealed files are not locked."""
    return _open(here, name, "r", 0)


def _open(here: Directory, name: str, mode: str, more: int) -> io.FileIO:
    """Open a regular file that only this user can write. Raises OSError if it is another."""
    more |= _FLAGS
    file = io.FileIO(
        name, mode, opener=lambda name, flags: os.open(name, flags | more, 0o600, dir_fd=here.fd)
    )
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        file.close()
        raise OSError(errno.EPERM, "this is not a file of dstore")
    return file


def status(here: Directory, name: str) -> os.stat_result | None:
    """Return the status of a name, or None if there is no such file or it cannot be read."""
    try:
        return os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    except OSError:
        return None


def is_linked(file: io.FileIO, here: Directory, name: str) -> bool:
    """Return whether an open file still has this name: it may have been removed or replaced."""
    try:
        there = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


def remove(here: Directory, name: str) -> None:
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


def touch(file: int | str, folder: int | None = None) -> None:
    """Record that a file was used now; evictions go by that.

    ``file`` is a descriptor, or a name in the folder with the descriptor ``folder``.
    """
    now = time.time_ns()  # without an explicit time the file system takes one that is too coarse
    os.utime(file, ns=(now, now), dir_fd=folder)


# ---- complete values --------------------------------------------------------------------------


def _open_value(here: Directory, token: bytes) -> io.FileIO:
    """Open the sealed file of a value. Raises OSError, and FileNotFoundError if there is none."""
    own, copy = (sealed_name(token, for_global=each) for each in (True, False))
    # Global may move the file from the copies to its own between the first two looks.
    for name in (own, copy):
        with contextlib.suppress(FileNotFoundError):
            return open_sealed(here, name)
    return open_sealed(here, own)


def find(here: Directory, token: bytes, size: int) -> memoryview | None:
    """Map a value and touch its file. None unless it is there in full and has ``size`` bytes."""
    with contextlib.suppress(OSError), _open_value(here, token) as file:
        if os.fstat(file.fileno()).st_size == size:
            view = mapping.read_only(file.fileno(), size)
            with contextlib.suppress(OSError):  # the file system may be read-only by now
                touch(file.fileno())
            return view
    return None


def exists(
    here: Directory, token: bytes, *, for_global: bool = False, size: int | None = None
) -> bool:
    """Whether a value is there in full: among Global's own, or without ``for_global`` anywhere.

    With ``size``, a file of another size does not count.
    """
    # The copies first, since a file moves from there to Global's own, and never back.
    kinds = (True,) if for_global else (False, True)
    found = [status(here, sealed_name(token, for_global=each)) for each in kinds]
    return any(each is not None and size in (None, each.st_size) for each in found)


def read(
    here: Directory,
    token: bytes,
    size: int,
    offset: int,
    count: int,
    allocate: Callable[[int], bytearray | memoryview],
) -> memoryview | None:
    """Copy a part of a value of ``size`` bytes. None if the file has lost it.

    Raises FileNotFoundError if there is no file, and OSError or OverflowError if it cannot be read,
    as when no descriptors are left or the offset is out of range.
    """
    with _open_value(here, token) as file:
        if os.fstat(file.fileno()).st_size != size:
            return None
        part = allocate(count)
        # Fewer bytes if the file was cut short just now.
        whole = os.preadv(file.fileno(), [part], offset) == count
        return memoryview(part).toreadonly() if whole else None


def link(there: Directory, old: bytes, here: Directory, new: bytes, size: int) -> memoryview | None:
    """Let a value of another folder be a copy in this one, under the token ``new``. Returns a view.

    The bytes are not copied: the file gets another name. A name that is here already stays. A file
    that is no value of ``size`` bytes is not taken. Raises OSError.
    """
    for name in (sealed_name(old, for_global=each) for each in (True, False)):
        with contextlib.suppress(FileNotFoundError), open_sealed(there, name) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            view = mapping.read_only(file.fileno(), size)
            copy = sealed_name(new, for_global=False)
            os.link(name, copy, src_dir_fd=there.fd, dst_dir_fd=here.fd, follow_symlinks=False)
            if is_linked(file, here, copy):
                return view
            os.unlink(copy, dir_fd=here.fd)  # another file took its name just before
    return None


def adopt(here: Directory, token: bytes, size: int) -> bool:
    """Move a copy of ``size`` bytes to Global's own files. False if there is none such."""
    copy, own = (sealed_name(token, for_global=each) for each in (False, True))
    try:
        with open_sealed(here, copy) as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
        os.rename(copy, own, src_dir_fd=here.fd, dst_dir_fd=here.fd)
        return True
    except OSError:  # there is no such copy, or it was evicted just now
        return False
