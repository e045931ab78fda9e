"""Who owns the path of an ipc socket.

ZeroMQ removes whatever is at the path before it binds there, a live socket or a plain file. So a
Global first takes a lock on a file beside the path. It falls with the process, so the file itself
says nothing: what a killed Global has left is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import weakref

from dstore.errors import AddressError
from dstore.transport import addresses

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".lock"
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
        path = addresses.ipc_path(address)
        if path is None:
            return
        self._file = os.path.abspath(path) + SUFFIX
        if not path.startswith("@"):
            self._acquire()
        try:
            self._refuse_what_is_there(path)
        except BaseException:
            self.release()
            raise

    def __repr__(self) -> str:
        return f"<PathLock {self._address} {'free' if self._lock is None else 'held'}>"

    def release(self) -> None:
        """Give the path back, once nobody listens there any more. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        _held.discard(self)
        with contextlib.suppress(OSError):
            os.unlink(self._file)  # while it is locked, or it might be the next one's
        os.close(lock)

    def forked(self) -> None:
        """In the child: it is the parent's, and must not outlive that."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _acquire(self) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            return
        while self._lock is None:
            try:
                file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise self._refusal(error) from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self._file, file):
                    self._lock = file
            except OSError as error:
                raise self._refusal(error) from None
            finally:
                if self._lock is None:  # another one removed the file when it ended: try again
                    os.close(file)
        _held.add(self)

    def _refusal(self, error: OSError) -> AddressError:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES) and os.path.lexists(self._file):
            if error.errno == errno.EWOULDBLOCK:
                return addresses.in_use(self._address)
            return AddressError(
                f"cannot listen on {self._address}: another user has {self._file}; choose another "
                "path, or have it removed"
            )
        return AddressError(
            f"cannot listen on {self._address}: cannot lock {self._file}: "
            f"{addresses.reason(error.errno or errno.EIO)}"
        )

    def _refuse_what_is_there(self, path: str) -> None:
        """Only a socket that refuses connections is nobody's."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise AddressError(
                    f"cannot listen on {self._address}: there is something else at this path, and "
                    "ZeroMQ would remove it; choose another path, or remove it yourself"
                )
        name = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_MAX)
            try:
                probe.connect(name)
            except (ConnectionRefusedError, FileNotFoundError):
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, None):
                    raise AddressError(
                        f"cannot listen on {self._address}: cannot find out whether somebody "
                        f"listens there ({addresses.reason(error.errno or errno.EIO)})"
                    ) from None
        raise addresses.in_use(self._address)


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
