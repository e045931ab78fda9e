"""The data folder of a durable Global: its lock, and whether it is the folder that it was.

The folder has these files:

==============  ===============================================================================
``lock``        locked by the Global that uses the folder, until its process ends
``identity``    which folder, database file and machine this was when the last quiet period ended
``dstore.db``   the database, with ``dstore.db-wal`` and ``dstore.db-shm`` beside it
``large/``      a file for each large value
``reserve``     space that is kept for deletions when the disk is full
==============  ===============================================================================

The lock is a POSIX record lock: it ends with its process, however that ends, and a forked child
does not inherit it. It has two traps. It does not exclude threads of one process, so this module
knows the folders that are in use here. And when a process closes *any* descriptor of the file, the
lock is gone, so the file is opened once. SQLite locks its database file in the same way: no other
code of this process may open that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from dstore.errors import DataError
from dstore.quoting import quoted
from dstore.runtime import native
from dstore.server.data.mounts import network_kind

LOCK, IDENTITY, DATABASE, RESERVE = "lock", "identity", "dstore.db", "reserve"
LARGE = "large"
MACHINE_ID = "/etc/machine-id"
IGNORED = {"lost+found"}
"""Names that an empty folder may have: this one is at the top of a disk."""

_ADVICE = {
    errno.EACCES: "run Global as the user that owns it, or choose another folder",
    errno.EPERM: "run Global as the user that owns it, or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOENT: "create the folder above it first",
    errno.ENOTDIR: "choose the path of a folder",
    errno.ENOSPC: "free some space there, or choose a folder on another disk",
    errno.EDQUOT: "free some space there, or choose a folder on another disk",
}

_process_lock = native.RLock()
_in_use: set[tuple[int, int]] = set()
"""Device and inode of the folders that this process has locked. ``_process_lock`` guards it."""
_of_parent: set[tuple[int, int]] = set()
"""Those that were in use in a process of which this one is a forked child.

SQLite in this process believes that it still has their locks, so they must not be opened here.
"""


class DataFolder:
    """A data folder that is locked until :meth:`close` or the end of the process.

    A folder that does not exist is created, for its owner alone (mode 0700); the folder above it
    must exist.

    Raises DataError if it is in use, is no folder, is not empty and no data folder, is on a network
    file system, or cannot be written. All methods may be called from any thread.

    ``path`` is absolute and has no symbolic links. ``is_new`` is whether no identity was ever
    recorded in it. ``moved`` is whether it was copied or restored since: then the folder, its
    database file or the machine is another one than that recorded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)
        self._file: int | None = None
        try:
            self._enter()
        except OSError as error:
            raise _unusable(self.path, error) from None
        recorded = self._recorded()
        self.is_new = recorded is None
        self.moved = recorded is not None and recorded != self._identity()

    def __repr__(self) -> str:
        state = "closed" if self._file is None else "moved" if self.moved else "locked"
        return f"<DataFolder {self.path!r} {state}>"

    def file(self, name: str) -> str:
        """Return the path of a file in the folder."""
        return os.path.join(self.path, name)

    def record(self) -> None:
        """Record durably that this is the folder, the database and the machine. Raises OSError.

        To be called when the database has been created, and after a move when its quiet period is
        over. It waits for the disk.
        """
        new = self.file(f"{IDENTITY}.new")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, self._identity())
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(new, self.file(IDENTITY))
        self.sync()
        self.is_new = self.moved = False

    def sync(self) -> None:
        """Make durable which files the folder has. Raises OSError."""
        sync_folder(self.path)

    def close(self) -> None:
        """Release the lock. Idempotent. Does nothing after :meth:`forked`."""
        with _process_lock:
            file, self._file = self._file, None
            if file is not None:
                _in_use.discard(self._key)
                os.close(file)

    def forked(self) -> None:
        """Forget the lock, in a forked child: it is the parent's. Nothing is closed."""
        self._file = None

    # ---- entering -------------------------------------------------------------------------

    def _enter(self) -> None:
        created = self._create()
        if kind := network_kind(self.path):
            if created:
                os.rmdir(self.path)
            raise DataError(
                f"the data folder {quoted(self.path)} is on a network file system ({kind}), where "
                "locks and syncs are not reliable; choose a folder on a disk of this machine"
            )
        if not created:
            names = set(os.listdir(self.path)) - IGNORED
            if names and LOCK not in names:
                raise DataError(
                    f"the folder {quoted(self.path)} is not empty and is no data folder of dstore; "
                    "choose an empty folder, or one that does not exist"
                )
        with _process_lock:
            self._lock()

    def _create(self) -> bool:
        """Create the folder durably. Returns False if there is one."""
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(self.path).st_mode):
                return False
            raise DataError(
                f"{quoted(self.path)} is not a folder; choose another path for the data"
            ) from None
        sync_folder(os.path.dirname(self.path))
        return True

    def _lock(self) -> None:
        found = os.stat(self.path)
        self._key = found.st_dev, found.st_ino
        if self._key in _of_parent:
            raise DataError(
                f"the data folder {quoted(self.path)} was in use in the process that forked this "
                "one; open it in a process that was started, not forked"
            )
        if self._key in _in_use:  # to open and close its file here would drop the lock
            raise _is_in_use(self.path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self.file(LOCK), flags, 0o600)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _is_in_use(self.path) from None
            raise
        self._file = file
        _in_use.add(self._key)

    # ---- identity -------------------------------------------------------------------------

    def _identity(self) -> bytes:
        folder = os.stat(self.path)
        lines = [f"folder {folder.st_dev} {folder.st_ino}"]
        with contextlib.suppress(FileNotFoundError):
            lines.append(f"database {os.stat(self.file(DATABASE)).st_ino}")
        with contextlib.suppress(OSError), open(MACHINE_ID, encoding="ascii") as file:
            lines.append(f"machine {file.read().strip()}")
        return "".join(f"{line}\n" for line in lines).encode()

    def _recorded(self) -> bytes | None:
        try:
            with open(self.file(IDENTITY), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.close()
            raise _unusable(self.path, error) from None


def sync_folder(path: str) -> None:
    """Make durable which files a folder has. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: str) -> None:
    """Make the bytes of a file durable. Raises OSError. Not for a database that is open here."""
    _sync(path, os.O_RDONLY)


def _sync(path: str, flags: int) -> None:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _is_in_use(path: str) -> DataError:
    return DataError(
        f"the data folder {quoted(path)} is in use by another Global, or by a check; end "
        "that, or choose another folder"
    )


def _unusable(path: str, error: OSError) -> DataError:
    number = error.errno or errno.EIO
    advice = _ADVICE.get(number, "choose another folder")
    return DataError(
        f"the data folder {quoted(path)} cannot be used: {os.strerror(number)}; {advice}"
    )


@native.in_forked_child
def _after_fork_in_child() -> None:
    global _process_lock
    _process_lock = native.RLock()
    _of_parent.update(_in_use)
