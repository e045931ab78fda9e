"""The data of a durable Global: a folder, the database in it, and the journal that commits to it.

:func:`open_data` opens them. The order of a life is: open; :meth:`Data.load` into an engine;
``journal.set_lease`` with the longest lease that may be out; ``journal.begin``; then answer. When
the quiet period is over: ``journal.set_lease`` with one's own lease, and :meth:`Data.settle`. At
the end, when no lease is out: ``journal.set_lease(0.0)`` and :meth:`Data.close`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from dstore.core.engine import Kept
from dstore.errors import DataError
from dstore.protocol.messages import Stored
from dstore.runtime.logs import Log
from dstore.server.data.database import LOG_BYTES, RESERVE_BYTES, Database
from dstore.server.data.failures import cannot_open
from dstore.server.data.folder import DATABASE, RESERVE, DataFolder
from dstore.server.data.journal import DataJournal
from dstore.server.data.reserve import Reserve

__all__ = ["Data", "DataFolder", "DataJournal", "Database", "open_data"]

log = Log("dstore.global")


class Data:
    """The open data of a Global. Made by :func:`open_data`.

    ``folder`` is locked. ``database`` may be used until ``journal.begin``. ``lease`` is the longest
    lease that a former Global may have given, in seconds (0.0: none is out). ``wall`` is the newest
    recorded time of the wall clock, in seconds since 1970. ``moved`` is whether the folder was
    copied or restored since it was last settled: then the Global from which it was copied may have
    given leases, too.
    """

    def __init__(
        self, folder: DataFolder, database: Database, journal: DataJournal, *, moved: bool
    ) -> None:
        self.folder = folder
        self.database = database
        self.journal = journal
        self.moved = moved
        self.lease = database.lease
        self.wall = database.wall

    def __repr__(self) -> str:
        return f"<Data {self.folder!r} {self.journal!r}>"

    def load(self) -> Iterator[Kept]:
        """Return all keys with their values, in no order; see :class:`~dstore.core.engine.Kept`.

        To be exhausted before ``journal.begin``. Raises DataError if a page or a key is unreadable.
        """
        return self.database.load()

    def settle(self) -> None:
        """Have it recorded that the folder is where it belongs, when its quiet period is over.

        Does nothing unless it was moved. Returns at once if the journal has begun.
        """
        if self.moved:
            self.moved = False
            self.journal.call(self._record)

    def figures(self) -> dict[str, float]:
        """Return what can be measured; see :meth:`Database.figures`. From any thread."""
        return self.database.figures()

    def close(self) -> None:
        """Commit what was taken, close the database, and release the folder. Idempotent.

        May be called from any thread but the committer. Raises DataError if the end cannot be
        written.
        """
        try:
            self.journal.close()
        finally:
            self.folder.close()

    def forked(self) -> None:
        """Forget everything, in a forked child: nothing is closed, removed or written there."""
        self.journal.forked()
        self.folder.forked()

    def _record(self) -> None:
        try:
            self.folder.record()
        except OSError as error:  # then the next start is quiet once more
            log.warning("cannot record where the data folder is: %s", error)


def open_data(
    path: str | os.PathLike[str],
    keep: Callable[[Stored], None],
    *,
    log_bytes: int = LOG_BYTES,
    reserve_bytes: int = RESERVE_BYTES,
) -> Data:
    """Open the data in a folder, or create it. What the folder's log has is then durable.

    ``keep`` makes the bytes of a large value durable; see :class:`DataJournal`. From ``log_bytes``
    on the log is copied into the database, and ``reserve_bytes`` of space are kept for deletions on
    a full disk. Raises DataError, whose message says what to do.
    """
    folder = DataFolder(path)
    try:
        moved = folder.moved
        database = Database(
            folder.file(DATABASE),
            new=folder.is_new,
            synced=folder.sync,
            reserve=Reserve(folder.file(RESERVE), reserve_bytes),
            log_bytes=log_bytes,
        )
        if folder.is_new:
            if database.created:
                _record_new(folder, database)
            else:
                moved = True  # the identity was lost, or is that of a start that did not end
    except BaseException:
        folder.close()
        raise
    return Data(folder, database, DataJournal(database, keep), moved=moved)


def _record_new(folder: DataFolder, database: Database) -> None:
    try:
        folder.record()
    except OSError as error:
        with contextlib.suppress(DataError):
            database.close()
        raise cannot_open(folder.path, error) from None
