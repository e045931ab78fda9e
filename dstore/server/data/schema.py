"""The tables of the database, and how it is opened: checked, recovered, and created if new."""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib

from dstore.errors import DataError
from dstore.quoting import quoted
from dstore.server.data.failures import damaged

APPLICATION_ID = 0x6453744F
"""Marks the file as a database of dstore, for programs that name the kinds of files: ``dStO``."""
VERSION = 1
"""The version of the tables, which the file has as its ``user_version``."""

# A table with row numbers, not one that is a tree by key: values may be large, and with them such a
# tree is deep (measured: half as fast at 10 KiB; at 100 bytes there is no clear difference on a
# disk). Columns have no types: the sums find a wrong one, and SQLite's own check of types would
# take one damaged row for a reason to open nothing.
_TABLES = (
    "CREATE TABLE kept (key BLOB PRIMARY KEY NOT NULL, token, codec, size, body, deadline,"
    " head_sum, value_sum)",
    "CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value, sum)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)

_SETTINGS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "fullfsync = ON",  # macOS: a plain fsync does not reach the disk there
    "checkpoint_fullfsync = ON",
    "locking_mode = NORMAL",
    "wal_autocheckpoint = 0",  # SQLite ignores an error of its own checkpoints
    "secure_delete = OFF",  # it would log the pages of a removed value once more
    "temp_store = MEMORY",
    "mmap_size = 0",  # a failed read would end the process
    "cache_size = -16384",  # KiB
    "trusted_schema = OFF",
)

_immortal: list[sqlite3.Connection] = []


def connect(path: str, *, new: bool, busy_seconds: float) -> tuple[sqlite3.Connection, bool]:
    """Open the database of a folder. ``new``: it may be created. Returns also whether it was.

    What a former process has left in the log is read, but not synced yet. Raises DataError if the
    database is missing, damaged, or of another program or version, and sqlite3.Error.
    """
    if not new and not (os.path.exists(path) and os.path.getsize(path)):
        raise damaged(os.path.dirname(path), f"{os.path.basename(path)} is missing or empty")
    if new and not os.path.exists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
    )
    keep_for_ever(connection)
    try:
        connection.text_factory = bytes
        created = not is_ours(connection, path)
        if created:
            if not new:
                raise damaged(os.path.dirname(path), f"{os.path.basename(path)} has no tables")
            _create(connection)
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}")
    except BaseException:
        connection.close()
        raise
    return connection, created


def keep_for_ever(connection: sqlite3.Connection) -> None:
    """See to it that Python never closes a connection by itself.

    A forked child has a copy of it. If the child closed that, even at its exit, SQLite could remove
    the log of the parent. At the exit of Python all modules are cleared, so a list in one of them
    would not do.
    """
    try:
        import ctypes
    except ImportError:  # Python was built without libffi
        _immortal.append(connection)
    else:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """Whether it has our tables. Raises DataError if it has others, or those of a later version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID:
        if tables:
            raise DataError(
                f"{quoted(path)} is a database of another program; choose another folder"
            )
        return False
    if version > VERSION:
        raise DataError(
            f"the data in {quoted(os.path.dirname(path))} was written by a newer dstore (format "
            f"{version}; this one has {VERSION}); install that version, or choose another folder"
        )
    return bool(tables)


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute("COMMIT")


# ---- meta -----------------------------------------------------------------------------------


def read_meta(connection: sqlite3.Connection, name: str) -> float | None:
    """Return a number of the table ``meta``, or None if it was never written.

    Raises ValueError if it is damaged, and sqlite3.Error.
    """
    row = connection.execute("SELECT value, sum FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    value, found = row
    if not isinstance(value, float) or _meta_sum(name, value) != found:
        raise ValueError(f"the record of {name!r} is not what was written")
    return value


def write_meta(connection: sqlite3.Connection, name: str, value: float) -> None:
    """Write a number into the table ``meta``, within a transaction. Raises sqlite3.Error."""
    connection.execute(
        "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, value, _meta_sum(name, value))
    )


def _meta_sum(name: str, value: float) -> int:
    return zlib.crc32(name.encode() + struct.pack(">d", value))
