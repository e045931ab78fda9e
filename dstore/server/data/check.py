"""Looks for damage in a data folder that no Global uses: all sums, digests and pages are compared.

Damage is in a value, whose key is then known, or in the database as a whole, which no Global can
open any more. A value that is damaged can be deleted or replaced in a running Global; a database
that is damaged needs a backup. Files that no row names are no damage: a crash leaves them, and the
next start removes them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import quote

from dstore.core.engine import Kept
from dstore.errors import DataError
from dstore.protocol.messages import Key, Large, Stored
from dstore.quoting import quoted
from dstore.server.data import rows, schema
from dstore.server.data.database import LEASE, WALL
from dstore.server.data.failures import cannot_open
from dstore.server.data.folder import DATABASE, LARGE, LOCK, DataFolder
from dstore.server.data.large import LargeFiles
from dstore.shm.files import PART_NAME, SEALED_NAME

Progress = Callable[[str, int, int], object]
"""Called with what is being done, and with the bytes that are done and all of them."""
PAGE_FAULTS_MAX = 20
"""Faults of pages that are named; more of them say nothing new."""
BUSY_SECONDS = 30.0
"""Seconds to wait for a program that has the database locked for a moment."""


class Damaged(NamedTuple):
    """A value that is damaged, and what is wrong with it."""

    key: Key
    what: str


class Report(NamedTuple):
    """What a folder has.

    ``keys`` is the number of keys that can be read, and ``size`` the bytes of the database and of
    the large values that they name. ``faults`` are faults of the database itself. ``orphans`` is
    the number of files that no row names.
    """

    keys: int
    size: int
    damaged: list[Damaged]
    faults: list[str]
    orphans: int

    @property
    def is_sound(self) -> bool:
        return not self.damaged and not self.faults


def check_folder(path: str, progress: Progress) -> Report:
    """Check a data folder, or a backup. It is locked meanwhile, and not changed.

    Raises DataError if it is in use or is no data folder, and OSError if it cannot be read.
    """
    require_data(path)
    folder = DataFolder(path)
    try:
        return check_data(folder.path, progress)
    finally:
        folder.close()


def require_data(path: str) -> None:
    """Raise DataError unless there is a data folder with a database, which is this user's own."""
    if not os.path.isdir(path):
        raise DataError(f"there is no folder {quoted(path)}; give the folder of a Global's data")
    if not all(os.path.exists(os.path.join(path, name)) for name in (LOCK, DATABASE)):
        raise DataError(
            f"{quoted(path)} is no data folder of dstore; give the one that `dstore global --data` "
            "uses, or a backup of it"
        )
    if os.stat(path).st_uid != os.geteuid():
        raise DataError(
            f"{quoted(path)} belongs to another user; run this command as the user of its Global"
        )


def check_data(path: str, progress: Progress, *, digests: bool = True) -> Report:
    """Check a data folder that nothing changes meanwhile. Without ``digests`` no large value."""
    file = os.path.join(path, DATABASE)
    log = os.path.join(path, f"{DATABASE}-wal")
    with_log = os.path.exists(log) and os.path.getsize(log) > 0
    try:
        with reading(file, unused=not with_log) as connection:
            return _Check(path, connection, progress, digests).report()
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.OperationalError):
            raise cannot_open(path, error) from None
        return Report(0, os.path.getsize(file), [], [str(error)], 0)


@contextlib.contextmanager
def reading(file: str, *, unused: bool) -> Iterator[sqlite3.Connection]:
    """Open a database for reading alone: nothing is written, and the log stays as it is.

    ``unused``: there is no log, and no other program writes or will write meanwhile; then not even
    locks are taken. Never for a database that this process has open already: to close it would drop
    the locks. Raises DataError if it is not ours or of a newer version, and sqlite3.Error.
    """
    how = "immutable=1" if unused else "mode=ro"
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(file))}?{how}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
    )
    try:
        connection.text_factory = bytes
        connection.execute("PRAGMA mmap_size = 0")  # a failed read would end the process
        connection.execute("PRAGMA temp_store = MEMORY")
        if not schema.is_ours(connection, file):
            raise DataError(f"{quoted(file)} has no tables of dstore; restore a backup of it")
        yield connection
    finally:
        connection.close()


def all_kept(connection: sqlite3.Connection, *, large: bool = False) -> Iterator[Kept | None]:
    """Return what each row says, in no order, and None for a row whose key cannot be read.

    ``large``: of large values only.
    """
    where = " WHERE size IS NOT NULL" if large else ""
    for row in connection.execute(f"SELECT * FROM kept{where}"):
        try:
            yield rows.kept_of(row)
        except rows.KeyUnreadable:
            yield None


class _Check:
    """One check of an open database, and of the large values beside it."""

    def __init__(
        self, path: str, connection: sqlite3.Connection, progress: Progress, digests: bool
    ) -> None:
        self._connection = connection
        self._progress = progress
        self._folder = os.path.join(path, LARGE)
        self._digests = digests
        self._damaged: list[Damaged] = []
        self._faults: list[str] = []
        self._large: list[tuple[Key, Stored]] = []
        self._tokens: set[bytes] = set()
        self._keys = 0
        self._size = os.path.getsize(os.path.join(path, DATABASE))
        self._what = "checking"
        self._done, self._total = 0, self._size

    def report(self) -> Report:
        self._advance(0)
        self._check_pages()
        try:
            self._check_rows()
        except sqlite3.DatabaseError as error:  # the pages have been named already
            self._faults.append(f"not all rows can be read: {error}")
        self._check_meta()
        self._check_large()
        orphans = self._orphans()
        return Report(self._keys, self._size, self._damaged, self._faults, orphans)

    def _check_pages(self) -> None:
        found = []
        try:
            for (line,) in self._connection.execute(f"PRAGMA integrity_check({PAGE_FAULTS_MAX})"):
                found += line.decode(errors="replace").splitlines()
        except sqlite3.DatabaseError as error:
            found.append(str(error))
        self._faults += [line for line in found if line != "ok"]

    def _check_rows(self) -> None:
        for kept in all_kept(self._connection):
            if kept is None:
                self._faults.append("there is a row whose key cannot be read")
                continue
            self._keys += 1
            stored = kept.stored
            if stored is None:
                self._damaged.append(Damaged(kept.key, "its row is not what was written"))
                if kept.token:
                    self._tokens.add(kept.token)
            elif type(stored.body) is Large:
                self._tokens.add(stored.token)
                self._large.append((kept.key, stored))
                self._size += stored.size
            else:
                self._advance(stored.size)

    def _check_meta(self) -> None:
        for name in (LEASE, WALL):
            try:
                schema.read_meta(self._connection, name)
            except (ValueError, sqlite3.DatabaseError) as error:
                self._faults.append(str(error))

    def _check_large(self) -> None:
        if not self._digests or not self._large:
            return
        if not os.path.isdir(self._folder):
            self._damaged += [Damaged(key, "its file is missing") for key, _ in self._large]
            return
        self._what = "hashing"
        self._done, self._total = 0, sum(stored.size for _, stored in self._large)
        large = LargeFiles(self._folder)
        try:
            for key, stored in self._large:
                before = self._done
                if fault := self._fault_of(stored, large):
                    self._damaged.append(Damaged(key, fault))
                self._done = before
                self._advance(stored.size)
        finally:
            large.close()

    def _fault_of(self, stored: Stored, large: LargeFiles) -> str:
        try:
            if large.verify(stored, self._advance):
                return ""
        except OSError as error:
            return f"its file cannot be read: {error.strerror}"
        try:
            size = os.stat(os.path.join(self._folder, stored.token.hex())).st_size
        except FileNotFoundError:
            return "its file is missing"
        if size != stored.size:
            return f"its file has {size:,} bytes in place of {stored.size:,}"
        return "its file is not what was written"

    def _orphans(self) -> int:
        """Count the files that no row names. A damaged row may name one of them."""
        if not os.path.isdir(self._folder):
            return 0
        names = os.listdir(self._folder)
        sealed = [name for name in names if SEALED_NAME.fullmatch(name)]
        parts = [name for name in names if PART_NAME.fullmatch(name)]
        return len(parts) + sum(bytes.fromhex(name) not in self._tokens for name in sealed)

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress(self._what, min(self._done, self._total), self._total)
