"""Who owns the path of an ipc socket.

ZeroMQ removes whatever is at the path before it binds there, a live socket or a plain file, and
removes nothing when it closes. So a Global first takes a lock on a file beside the path. The lock
falls with the process, so that the file itself says nothing: what a killed Global has left is
taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from typing import Any

from dstore.errors import AddressError
from dstore.runtime.native import sockets
from dstore.transport import addresses

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SUFFIX = ".lock"
NOTE_BYTES_MAX = 100
"""Of a lock file, which says which socket its owner has bound."""
PROBE_MAX = 1.0
"""Seconds for a plain connection to whatever listens at the path."""


class PathLock:
    """Holds the path of an ipc address, until :meth:`release`. Other addresses need none.

    Raises AddressError if somebody lives there, or it is not a socket that is there.

    An abstract name (``ipc://@NAME``) needs no lock: the system gives it to one only, and leaves
    nothing behind.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock: int | None = None
        self._bound = ""
        name = addresses.ipc_path(address)
        if name is None or fcntl is None:
            return
        self._name = name
        self._path = os.path.abspath(name)  # the process may change its folder
        self._file = self._path + SUFFIX
        if name.startswith("@"):
            self._refuse_other_kinds()  # ZeroMQ removes a file of that name all the same
            return
        self._acquire()
        try:
            self._refuse_other_kinds()
            self._refuse_the_living()
        except BaseException:
            self.release()
            raise

    def __repr__(self) -> str:
        return f"<PathLock {self._address} {'free' if self._lock is None else 'held'}>"

    def bound(self) -> None:
        """Note which socket is ours. A child that was forked may keep it alive, where it is of no
        use to anybody.
        """
        if self._lock is not None:
            self._bound = _identity(self._path)
            with contextlib.suppress(OSError):  # a full disk
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, self._bound.encode(), 0)

    def release(self) -> None:
        """Remove the socket, which is closed, and give the path back. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        _held.discard(self)
        # While it is locked: afterwards the files might be the next one's.
        with contextlib.suppress(OSError):
            if self._bound and _identity(self._path) == self._bound:
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            os.unlink(self._file)
        os.close(lock)

    def forked(self) -> None:
        """In the child: it is the parent's, and must not outlive that."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _acquire(self) -> None:
        while self._lock is None:
            try:
                file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise self._cannot_lock(error) from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self._file, file):  # else its owner removed it just now: try again
                    self._lock = file
            except BlockingIOError:
                raise addresses.in_use(self._address) from None
            except OSError as error:
                raise self._cannot_lock(error) from None
            finally:
                if self._lock is None:
                    os.close(file)
        _held.add(self)

    def _cannot_lock(self, error: OSError) -> AddressError:
        why = addresses.reason(error.errno or errno.EIO)
        return AddressError(
            f"cannot listen on {self._address}: cannot lock {self._file} ({why}); choose a path in "
            "a folder where you may write"
        )

    def _refuse_other_kinds(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise AddressError(
                    f"cannot listen on {self._address}: what is at this path is no socket, and "
                    "would be lost; choose another path, or remove it"
                )

    def _refuse_the_living(self) -> None:
        """Only a refused connection says that nobody is there. And what the lock is of, since it
        is ours now.
        """
        note = os.pread(self._lock or 0, NOTE_BYTES_MAX, 0).decode(errors="replace")
        with contextlib.suppress(FileNotFoundError):
            if note == _identity(self._path):
                return
        probe = sockets.socket(sockets.AF_UNIX)
        try:
            probe.settimeout(PROBE_MAX)
            probe.connect(self._name)  # which may be shorter, and has to be
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:  # its backlog may be full
            pass
        finally:
            probe.close()
        raise addresses.in_use(self._address)


def _identity(path: str) -> str:
    """Which file is at a path: its device, inode and time, in case the inode is used again."""
    found = os.lstat(path)
    return f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}"


def _is_at(path: str, file: int) -> bool:
    try:
        there, here = os.stat(path, follow_symlinks=False), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


_held: weakref.WeakSet[PathLock] = weakref.WeakSet()


def _forked() -> None:
    for lock in list(_held):
        lock.forked()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
