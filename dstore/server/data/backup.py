"""Copies of a data folder: a backup while its Global runs or not, and the restoring of one.

Both run in a process of their own, never in one that has a Global with a data folder: to close a
second descriptor of its database would drop SQLite's locks.

A copy is consistent. First the removal of large values is held up, in whichever process the Global
runs, by a lock that the kernel releases when this process ends. Then one read transaction of the
database begins: the *snapshot*. A large value has its file before its row is committed, and until
after the row's removal is committed. So each large value that a row of the snapshot names has its
file for as long as the lock is held.

While the snapshot is read, the log of a Global that writes cannot begin again at its start, and
grows. That is bounded: a copy during which it grows too much is given up.

A copy is written to a folder beside its place, and renamed when all of it is on the disk. It is a
data folder without the record of which folder it is, so a Global that uses it knows that it was
copied, and is silent until all leases are over that its original may have given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from urllib.parse import quote

from dstore.errors import DataError
from dstore.protocol.messages import Key, Large, Stored
from dstore.quoting import quoted
from dstore.server.data.check import (
    Damaged,
    Progress,
    Report,
    all_kept,
    check_data,
    reading,
    require_data,
)
from dstore.server.data.failures import cannot_open, disk_full
from dstore.server.data.folder import DATABASE, LARGE, LOCK, sync_file, sync_folder
from dstore.server.data.large import LargeFiles
from dstore.server.data.mounts import network_kind

LOG_GROWTH_MAX = 1 << 30
"""Bytes by which the log may grow during the copy of the database; then the copy is given up."""
SPARE_BYTES = 64 << 20
"""Bytes that a copy leaves free on each disk: a Global needs some for its deletions."""
PAGES_PER_STEP = 1024
"""Pages that are copied between two looks at the log and at the signals."""


def back_up(path: str, target: str, progress: Progress) -> Report:
    """Copy the data folder ``path`` to the new folder ``target``, while a Global uses it or not.

    Large values are hard links if both are on one file system, else copies. Values that are damaged
    are in the result, and the rest is copied all the same. Raises DataError if ``target`` exists,
    if there is no room, if the database is damaged as a whole, or if the log grows too much
    meanwhile, and OSError. Then ``target`` does not exist.
    """
    require_data(path)
    if os.path.lexists(target):
        raise DataError(f"{quoted(target)} exists; choose a path that does not, for the backup")
    with _new_folder(target) as new:
        return _Copy(path, new, progress, link=True, unused=False).make()


def restore(backup: str, path: str, progress: Progress) -> Report:
    """Copy a backup to the folder ``path``, which does not exist or is empty.

    Each large value is compared with its digest. For the rest see :func:`back_up`.
    """
    require_data(backup)
    path = os.path.realpath(path)
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise DataError(
            f"{quoted(path)} is not empty; choose a folder that is, or that does not exist. To put "
            "a backup in the place of damaged data, rename that folder first"
        )
    if os.path.ismount(path):
        raise DataError(f"{quoted(path)} is the top of a disk; choose a folder in it")
    if kind := network_kind(path):
        raise DataError(
            f"{quoted(path)} is on a network file system ({kind}), where no Global can use it; "
            "choose a folder on a disk of this machine"
        )
    unused = not os.path.exists(os.path.join(backup, f"{DATABASE}-wal"))
    with _new_folder(path) as new:
        return _Copy(backup, new, progress, link=False, unused=unused).make()


class _Copy:
    """One copy of the data folder ``source`` to the empty folder ``new``.

    ``link``: large values may be hard links. ``unused``: no Global can be using ``source``.
    """

    def __init__(
        self, source: str, new: str, progress: Progress, *, link: bool, unused: bool
    ) -> None:
        self._source = source
        self._new = new
        self._progress = progress
        self._link = link and os.stat(source).st_dev == os.stat(new).st_dev
        self._unused = unused
        self._done = self._total = 0

    def make(self) -> Report:
        large = LargeFiles(os.path.join(self._source, LARGE))
        held = contextlib.nullcontext() if self._unused else large.removals_deferred()
        try:
            with held:
                try:
                    self._copy_database()
                except sqlite3.Error as error:
                    raise self._failed(error) from None
                report = check_data(self._new, self._progress, digests=False)
                if report.faults:
                    raise DataError(
                        f"the database in {quoted(self._source)} is damaged ({report.faults[0]}), "
                        "so no copy was made; `dstore check` says more"
                    )
                lost = self._copy_large(large)
        finally:
            large.close()
        return report._replace(damaged=report.damaged + lost)

    def _copy_database(self) -> None:
        copy = os.path.join(self._new, DATABASE)
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with (
            reading(os.path.join(self._source, DATABASE), unused=self._unused) as source,
            contextlib.closing(_writing(copy)) as target,
        ):
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM meta").fetchone()  # the snapshot is of now
            (pages,) = source.execute("PRAGMA page_count").fetchone()
            (page_size,) = source.execute("PRAGMA page_size").fetchone()
            self._require_room(pages * page_size)
            log_bytes = self._log_bytes()

            def step(status: int, left: int, total: int) -> None:
                self._progress("copying", (total - left) * page_size, total * page_size)
                self._watch_log(log_bytes)

            source.backup(target, pages=PAGES_PER_STEP, progress=step)
        sync_file(copy)

    def _copy_large(self, large: LargeFiles) -> list[Damaged]:
        """Copy the large values that the rows of the copy name. Returns those that are lost."""
        keys: dict[bytes, Key] = {}
        values: list[Stored] = []
        with reading(os.path.join(self._new, DATABASE), unused=True) as connection:
            for kept in all_kept(connection, large=True):
                if kept is not None and kept.stored and type(kept.stored.body) is Large:
                    keys[kept.token] = kept.key
                    values.append(kept.stored)
        self._total = sum(stored.size for stored in values)
        if not self._link:
            self._require_room(self._total)
        target = LargeFiles(os.path.join(self._new, LARGE))
        try:
            lost = large.copy_to(target, values, link=self._link, done=self._advance)
        finally:
            target.close()
        return [Damaged(keys[each.token], "its file is lost or damaged") for each in lost]

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress("copying", min(self._done, self._total), self._total)

    def _require_room(self, size: int) -> None:
        if (free := _free_bytes(self._new)) < size + SPARE_BYTES:
            raise DataError(
                f"the copy needs {size:,} bytes, and {SPARE_BYTES:,} are to stay free, but the "
                f"disk of {quoted(os.path.dirname(self._new))} has only {free:,}; free some space "
                "there, or choose a folder on another disk"
            )

    def _log_bytes(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(os.path.join(self._source, f"{DATABASE}-wal")).st_size
        return 0

    def _watch_log(self, before: int) -> None:
        grown = self._log_bytes() - before
        if grown > LOG_GROWTH_MAX or (grown > 0 and _free_bytes(self._source) < SPARE_BYTES):
            raise DataError(
                f"Global has written {grown:,} bytes while its database was copied, for which "
                f"{quoted(self._source)} has no room; try again when it writes less, or with a "
                "faster disk for the copy"
            )

    def _failed(self, error: sqlite3.Error) -> DataError:
        if disk_full(error):
            return DataError(
                f"the disk of {quoted(os.path.dirname(self._new))} is full; free some space there, "
                "or choose a folder on another disk"
            )
        return cannot_open(self._source, error)


def _writing(file: str) -> sqlite3.Connection:
    """Open the database that a copy is written to. Nothing else has it; it is synced at the end."""
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(file))}?nolock=1", uri=True, isolation_level=None
    )
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _free_bytes(path: str) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


@contextlib.contextmanager
def _new_folder(path: str) -> Iterator[str]:
    """Yield a folder beside ``path``, which becomes ``path`` when the block ends without error.

    Then all of it is on the disk, if the block has synced the files. Otherwise it is removed. Only
    a killed process leaves it, under a name that ends with ``.partial-`` and some characters.
    """
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    new = tempfile.mkdtemp(prefix=f"{name}.partial-", dir=parent)
    try:
        yield new
        lock = os.path.join(new, LOCK)
        os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_file(lock)
        sync_folder(new)
        try:
            os.rename(new, path)
        except OSError as error:
            raise DataError(f"{quoted(path)} cannot be made: {error.strerror}") from None
        sync_folder(parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
