"""What an error of SQLite means for the journal: no room, or the end."""

from __future__ import annotations

import sqlite3

from dstore.errors import DataError
from dstore.quoting import quoted

_FULL = 13
_NO_ROOM_FOR_THE_INDEX = 4874
"""SQLITE_IOERR_SHMSIZE: the file ``dstore.db-shm`` could not grow."""


class DiskFull(Exception):
    """The disk has no room. The transaction was rolled back.

    ``in_log``: it is in the log all the same, and a crash now would bring it back; the next
    transaction overwrites it there.
    """

    def __init__(self, *, in_log: bool) -> None:
        super().__init__(in_log)
        self.in_log = in_log


def disk_full(error: sqlite3.Error) -> DiskFull | None:
    """Return the DiskFull that the error stands for, or None if it is another error."""
    code = getattr(error, "sqlite_errorcode", None)  # Python 3.10 has none
    if code == _NO_ROOM_FOR_THE_INDEX:  # the index of the log is written after the log
        return DiskFull(in_log=True)
    if code == _FULL or "disk is full" in str(error):
        return DiskFull(in_log=False)
    return None


def disk_failed(error: BaseException) -> bool:
    """Whether an error of SQLite is a failed read, write or sync."""
    return isinstance(error, sqlite3.OperationalError) and "disk I/O error" in str(error)


def cannot_write(path: str, error: object) -> DataError:
    return DataError(
        f"the data in {quoted(path)} cannot be written ({error}); nothing more is stored, and "
        "Global ends. See the log of the system for errors of the disk, then start Global again"
    )


def cannot_open(path: str, error: object) -> DataError:
    return DataError(
        f"the data in {quoted(path)} cannot be opened ({error}); see that no other program uses it "
        "and that its disk works and has room, then start Global again"
    )


def damaged(path: str, what: object) -> DataError:
    return DataError(
        f"the data in {quoted(path)} is damaged ({what}); restore the folder from a backup, or "
        "choose another folder"
    )
