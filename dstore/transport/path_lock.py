"""The lock that gives the path of an ipc socket to one Global at a time.

ZeroMQ removes any file at the path before it binds there, even the socket of a live program, and
removes nothing when it closes. So a Global first locks a file beside the path. The kernel releases
the lock when the process ends, so a lock file that a killed Global has left is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import weakref

from dstore.errors import AddressError
from dstore.runtime import native
from dstore.runtime.native import sockets
from dstore.transport import addresses
from dstore.transport.binding import error_text, in_use

SUFFIX = ".lock"
"""What a lock file's name has after the path."""
LOCK_FILE_BYTES_MAX = 100
"""Bytes that are read of a lock file, which names the socket that its owner has bound."""
PROBE_TIMEOUT = 1.0
"""Seconds for a plain connection to what listens at the path."""


class PathLock:
    """Holds the path of an ipc address until :meth:`release`. Does nothing for a tcp address.

    Raises AddressError if a program listens at the path, or if a file other than a socket is there.

    An abstract name (``ipc://@NAME``) needs no lock: the kernel gives it to one process at a time,
    and frees it when that ends.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock: int | None = None
        self._bound = ""
        name = addresses.ipc_path(address)
        if name is None:
            return
        self._name = name
        self._path = os.path.abspath(name)  # the process may change its working directory
        self._file = self._path + SUFFIX
        if name.startswith("@"):
            self._refuse_other_kinds()  # ZeroMQ removes a file of that name all the same
            return
        self._acquire()
        try:
            self._refuse_other_kinds()
            self._refuse_listener()
        except BaseException:
            self.release()
            raise

    def note_bound(self) -> None:
        """Write into the lock file which socket is ours.

        A forked child may keep that socket open after the process has ended. The next Global
        recognizes it by this, and does not take it for a live one.
        """
        if self._lock is not None:
            self._bound = _identity(self._path)
            with contextlib.suppress(OSError):  # a full disk
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, self._bound.encode(), 0)

    def release(self) -> None:
        """Remove the closed socket and release the lock. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        _held.discard(self)
        # Before the lock is released: afterwards the files may belong to the next Global.
        with contextlib.suppress(OSError):
            if self._bound and _identity(self._path) == self._bound:
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            os.unlink(self._file)
        os.close(lock)

    def forked(self) -> None:
        """Close the lock file in a forked child: the lock must not outlive the parent."""
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
                if _is_at(self._file, file):  # else its owner has just removed it: try again
                    self._lock = file
            except BlockingIOError:
                raise in_use(self._address) from None
            except OSError as error:
                raise self._cannot_lock(error) from None
            finally:
                if self._lock is None:
                    os.close(file)
        _held.add(self)

    def _cannot_lock(self, error: OSError) -> AddressError:
        why = error_text(error.errno or errno.EIO)
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

    def _refuse_listener(self) -> None:
        """Raise AddressError if a program may listen at the path.

        None does if the connection is refused, or if the socket is the one that the lock file
        names: its owner has ended, since the lock is ours.
        """
        note = os.pread(self._lock or 0, LOCK_FILE_BYTES_MAX, 0).decode(errors="replace")
        with contextlib.suppress(FileNotFoundError):
            if note == _identity(self._path):
                return
        probe = sockets.socket(sockets.AF_UNIX)
        try:
            probe.settimeout(PROBE_TIMEOUT)
            probe.connect(self._name)  # the absolute path may be too long
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:  # its backlog may be full: it is alive
            pass
        finally:
            probe.close()
        raise in_use(self._address)


def _identity(path: str) -> str:
    """The identity of the file at a path: device, inode, and time in case the inode is reused."""
    found = os.lstat(path)
    return f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}"


def _is_at(path: str, file: int) -> bool:
    try:
        there, here = os.stat(path, follow_symlinks=False), os.fstat(file)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, here)


_held: weakref.WeakSet[PathLock] = weakref.WeakSet()


@native.in_forked_child
def _forked() -> None:
    for lock in list(_held):
        lock.forked()
    _held.clear()
