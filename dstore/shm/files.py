"""Opening, removing and touching files in a folder that is held open.

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
from dstore.shm.directory import Directory, open_flags

LOCK, GLOBAL, COPIES = "lock", "global", "copies"
PART = ".part"
TOKEN_BYTES = 16
EPOCH_MAX = (1 << 64) - 1

EPOCH_NAME = re.compile("[0-9a-f]{16}")
REMOVED_NAME = re.compile("[0-9a-f]{16}[.][0-9a-f]{16}")
"""The epoch and a random number."""
SEALED_NAME = re.compile("[0-9a-f]{32}")
PART_NAME = re.compile("[0-9a-f]{32}[.]part")


def user_folder() -> str:
    """The folder in the root that has all epochs of this user."""
    return f"dstore-{os.geteuid()}"


def epoch_folder(epoch: int) -> str:
    return f"{epoch:016x}"


def global_file(token: bytes) -> str:
    """The sealed file of a value of Global's. Raises ValueError if this is no token."""
    return f"{GLOBAL}/{_file(token)}"


def copy_file(token: bytes) -> str:
    """The sealed file of a copy. Raises ValueError if this is no token."""
    return f"{COPIES}/{_file(token)}"


def search_order(token: bytes) -> tuple[str, str, str]:
    """Where to look for a sealed file.

    Global may move a file from the copies to its own between the first two looks.
    """
    return global_file(token), copy_file(token), global_file(token)


def check(token: bytes) -> None:
    """Raise ValueError if this is no token."""
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")


def _file(token: bytes) -> str:
    check(token)
    return token.hex()


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


def find(here: Directory, token: bytes, size: int) -> memoryview | None:
    """Map a value and touch its file. None unless it is there in full and has ``size`` bytes."""
    for name in search_order(token):
        with contextlib.suppress(FileNotFoundError):
            return _map(here, name, size)
    return None


def _map(here: Directory, name: str, size: int) -> memoryview | None:
    """None if the file has another size or cannot be mapped. Raises FileNotFoundError."""
    try:
        with open_sealed(here, name) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            view = mapping.read_only(file.fileno(), size)
            with contextlib.suppress(OSError):  # the file system may be read-only by now
                touch(file.fileno())
            return view
    except FileNotFoundError:
        raise
    except OSError:
        return None


def exists(
    here: Directory, token: bytes, *, for_global: bool = False, size: int | None = None
) -> bool:
    """Whether a value is there in full: among Global's own, or without ``for_global`` anywhere.

    With ``size``, a file of another size does not count.
    """
    # The copies first, since a file moves from there to Global's own, and never back.
    names = [] if for_global else [copy_file(token)]
    names.append(global_file(token))
    return any(
        status is not None and size in (None, status.st_size)
        for status in (status(here, name) for name in names)
    )


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
    for name in search_order(token):
        with contextlib.suppress(FileNotFoundError), open_sealed(here, name) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            part = allocate(count)
            # Fewer bytes if the file was cut short just now.
            whole = os.preadv(file.fileno(), [part], offset) == count
            return memoryview(part).toreadonly() if whole else None
    raise FileNotFoundError


def adopt(here: Directory, token: bytes, size: int) -> bool:
    """Move a copy of ``size`` bytes to Global's own files. False if there is none such."""
    copy = copy_file(token)
    try:
        with open_sealed(here, copy) as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
        os.rename(copy, global_file(token), src_dir_fd=here.fd, dst_dir_fd=here.fd)
        return True
    except OSError:  # there is no such copy, or it was evicted just now
        return False
