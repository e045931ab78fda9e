"""The database of a data folder: SQLite as a log and for the recovery. Values are not read from it.

Each call of :meth:`Database.apply` is one transaction, and durable when it returns. SQLite first
writes changed pages to a log (``dstore.db-wal``) and syncs that. A *checkpoint* copies them into
the database, so that the log can begin again at its start. Checkpoints are made here and not by
SQLite, which would ignore their errors.

A full disk is no failure: the transaction is rolled back, values that do not fit are refused, and
deletions go on in the space of the :class:`~dstore.server.data.reserve.Reserve`. While that space
is given up, no value is taken at all, so that values cannot use it up. Any other error of a write
or a sync is final: after a failed sync, it is not known what the disk has, and a second sync may
succeed without having written anything. Then every further call raises DataError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from dstore.core.engine import Change, ChangeKind, Kept, Outcome
from dstore.errors import DataError
from dstore.protocol.keys import to_bytes
from dstore.runtime import clock
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.data import rows, schema
from dstore.server.data.failures import (
    DiskFull,
    cannot_open,
    cannot_write,
    damaged,
    disk_failed,
    disk_full,
)
from dstore.server.data.folder import sync_file
from dstore.server.data.reserve import NO_ROOM, Reserve

log = Log("dstore.global")

LOG_BYTES = 16 << 20
"""Bytes of the log from which on a checkpoint is made, and by which it may grow until the next."""
IDLE_CHANGES = 100
"""Changes in the log from which on a checkpoint is made when there is nothing else to do."""
RESERVE_BYTES = 32 << 20
"""Bytes that are reserved for deletions: more than a checkpoint adds to the database."""
OPEN_BYTES = 4 << 20
"""Free bytes below which the reserve is given up before the database is opened."""
RETRY_EVERY = 1.0
"""Seconds between two tries to reserve the space again while no deletion has freed any."""
WARN_EVERY = 60.0
"""Seconds between two warnings of a full disk at least."""
BUSY_SECONDS = 30.0
"""Seconds to wait for another program that has the database locked."""
WALL_EVERY = 1.0
"""Seconds by which the recorded time of the wall clock may be behind the newest commit."""
RECENT = 256
"""Commits over which the mean and the longest time are reported."""

LEASE, WALL = "lease", "wall"

_ZEROS = bytes(1 << 20)

_INSERT = "INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE = (
    "UPDATE kept SET token = ?, codec = ?, size = ?, body = ?, deadline = ?, head_sum = ?,"
    " value_sum = ? WHERE key = ?"
)
_REMOVE = "DELETE FROM kept WHERE key = ?"
_DEADLINE = "UPDATE kept SET token = ?, deadline = ?, head_sum = ? WHERE key = ?"
_OF_TOKEN = " AND token = ?"
_REFUSED = (
    *(sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError),
    *(sqlite3.ProgrammingError, OverflowError, MemoryError),
)
"""What SQLite raises because of one value: it is too large, or the key has one already."""


class _Step(NamedTuple):
    """A change as it is written: a statement with its parameters. ``frees``: it needs no space."""

    statement: str
    parameters: tuple[Any, ...]
    frees: bool
    key: bytes


class Database:
    """The open database of a folder that the caller has locked.

    Used by one thread at a time; ``figures`` and ``lease`` may be read from any. ``new`` is whether
    it may be created. ``synced`` makes durable which files the folder has. When this returns, what
    was found in the log is durable.

    ``created`` is whether it was created here. ``lease`` is the recorded longest lease that may be
    out, and ``wall`` the newest recorded time of the wall clock, both in seconds and 0.0 if there
    is none.

    Raises DataError if it cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(
        self,
        path: str,
        *,
        new: bool,
        synced: Callable[[], None],
        reserve: Reserve,
        log_bytes: int = LOG_BYTES,
        busy_seconds: float = BUSY_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._folder = os.path.dirname(path)
        self._log_path = f"{path}-wal"
        self._log_bytes = log_bytes
        self._checkpoint_at = log_bytes
        self._reserve = reserve
        self._reserve_at = 0.0
        self._wall_clock = wall_clock
        self._busy_ms = int(busy_seconds * 1000)
        self._open: sqlite3.Connection | None = None
        self._failed: DataError | None = None
        self._unknown_tokens: set[bytes] = set()
        self._commits = self._changes = self._damaged = 0
        self._recent = [0.0] * RECENT
        self._full_disk_log = RateLimitedLog(log, WARN_EVERY)
        self._in_log = 0  # changes since the last checkpoint
        try:
            self._recover(new, synced, busy_seconds)
        except (sqlite3.Error, OSError, DiskFull) as error:
            if disk_failed(error):
                self._open = None  # to close it is to write and to sync once more
            self._release()
            reason = "the disk is full" if isinstance(error, DiskFull) else error
            raise cannot_open(self._folder, reason) from None
        except BaseException:
            self._release()
            raise

    def __repr__(self) -> str:
        state = "failed" if self._failed else "closed" if self._open is None else "open"
        return f"<Database {self.path!r} {state}, commits={self._commits}>"

    # ---- opening and closing --------------------------------------------------------------

    def _recover(self, new: bool, synced: Callable[[], None], busy_seconds: float) -> None:
        space = os.statvfs(self._folder)
        if space.f_bavail * space.f_frsize < OPEN_BYTES:
            self._reserve.release()
        try:
            self._open, self.created = schema.connect(self.path, new=new, busy_seconds=busy_seconds)
            self._with_reserve(partial(self._checkpoint_at_once, "TRUNCATE"))
            self.lease = schema.read_meta(self._open, LEASE) or 0.0
            self.wall = schema.read_meta(self._open, WALL) or 0.0
        except ValueError as error:
            raise damaged(self._folder, error) from None
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise damaged(self._folder, error) from None
        if self.log_bytes:  # a backup reads the database, so that the log has to stay
            sync_file(self._log_path)
        synced()
        if not self._reserve.take():
            self._warn_of_full_disk()
        elif not self.log_bytes:
            self._extend_log()

    def _extend_log(self) -> None:
        """Give the log's file at once the size to which it would grow. Raises OSError.

        A commit then syncs what it has written, and no new size of the file, which would take as
        long again. SQLite reads nothing from the zeros: a log begins with a header that has a sum.
        """
        file = os.open(self._log_path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = 0
            while written < self._log_bytes:
                written += os.pwrite(file, _ZEROS[: self._log_bytes - written], written)
            os.fsync(file)
        except OSError as error:
            if error.errno not in (*NO_ROOM, errno.EFBIG):
                raise
            os.ftruncate(file, 0)
        else:
            self._checkpoint_at = self._log_bytes + 1
        finally:
            os.close(file)

    def close(self) -> None:
        """Make a checkpoint and close the database. Idempotent. Raises DataError.

        After a failure it stays open, since SQLite would write and sync once more; the process is
        expected to end.
        """
        if self._open is None or self._failed is not None:
            return
        self._checkpoint_or_fail("TRUNCATE")
        self._release()

    def forked(self) -> None:
        """Forget the connection, in a forked child. It is not closed, and never will be."""
        self._open = None

    def _release(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._failed is not None:
            raise self._failed
        if self._open is None:
            raise DataError(f"the data in {self._folder} is closed")
        return self._open

    def _fail(self, error: object) -> DataError:
        self._failed = cannot_write(self._folder, error)
        return self._failed

    # ---- loading --------------------------------------------------------------------------

    def load(self) -> Iterator[Kept]:
        """Return all keys, each with its value or with None if that is damaged. In no order.

        Raises DataError if a page or a key cannot be read. To be exhausted before the first change.
        """
        try:
            for (line,) in self._connection.execute("PRAGMA quick_check(1)"):
                if line != b"ok":
                    raise damaged(self._folder, line.decode(errors="replace").rpartition("\n")[2])
            for kept in rows.kept_of_all(self._connection.execute("SELECT * FROM kept")):
                if kept.stored is None:
                    self._damaged += 1
                    if not kept.token:
                        self._unknown_tokens.add(to_bytes(kept.key))
                yield kept
        except sqlite3.Error as error:
            raise damaged(self._folder, error) from None
        except rows.KeyUnreadable:
            raise damaged(self._folder, "a key cannot be read") from None

    # ---- changes --------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> list[Outcome]:
        """Make the changes durable in their order, in one transaction. Returns an outcome each.

        On a full disk only what frees space is done. Raises DataError if nothing more can be made
        durable; it is then not known which of these changes are.
        """
        steps = [self._step_of(each) for each in changes]
        if not self._has_reserve():
            return self._apply_what_frees(steps)
        try:
            return self._transaction(steps)
        except DiskFull as full:
            self._warn_of_full_disk()
            return self._apply_what_frees(steps, full)

    def set_lease(self, seconds: float) -> None:
        """Record durably the longest lease that may be out. Raises DataError, also if there is no
        room.
        """
        meta = partial(schema.write_meta, self._connection, LEASE, float(seconds))
        try:
            self._with_reserve(partial(self._transaction, [], meta))
        except DiskFull:
            raise self._fail("the disk is full") from None
        self.lease = float(seconds)

    def tend(self) -> None:
        """Do what can wait until there is nothing else to do. Raises DataError."""
        self._has_reserve()
        if self._in_log >= IDLE_CHANGES:
            self._checkpoint_or_fail("PASSIVE")

    def _step_of(self, change: Change) -> _Step | None:
        """Encode a change, before any transaction begins. Returns None if that is not possible."""
        kind, token = change.kind, change.token
        try:
            key = to_bytes(change.key)
            if kind is ChangeKind.BIND or kind is ChangeKind.REPLACE:
                assert change.stored is not None
                row = rows.row_of(key, change.stored, change.deadline)
                if kind is ChangeKind.BIND:
                    return _Step(_INSERT, row, False, key)
                return self._of_token(_UPDATE, (*row[1:], key), False, key, token)
            if kind is ChangeKind.REMOVE:
                return self._of_token(_REMOVE, (key,), True, key, token)
            deadline = rows.column_of(change.deadline)
            head = rows.head_sum(key, token, change.deadline)
            return self._of_token(_DEADLINE, (token, deadline, head, key), True, key, token)
        except Exception:  # a change must not end the thread that commits those of others
            log.exception("a change of a key cannot be written")
            return None

    def _of_token(
        self, statement: str, parameters: tuple[Any, ...], frees: bool, key: bytes, token: bytes
    ) -> _Step:
        if not token and key in self._unknown_tokens:
            return _Step(statement, parameters, frees, key)
        return _Step(statement + _OF_TOKEN, (*parameters, token), frees, key)

    # ---- transactions ---------------------------------------------------------------------

    def _transaction(
        self, steps: Sequence[_Step | None], meta: Callable[[], None] | None = None
    ) -> list[Outcome]:
        """Write and sync. Raises DiskFull, with everything rolled back, and DataError."""
        connection = self._connection
        begun = clock.now()
        wall = self._wall_clock()
        late = meta is not None or not steps or not 0 <= wall - self.wall < WALL_EVERY
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._execute(connection, step) for step in steps]
            if late:
                schema.write_meta(connection, WALL, max(wall, self.wall))
            if meta is not None:
                meta()
            connection.execute("COMMIT")
        except (sqlite3.Error, MemoryError) as error:
            raise self._rolled_back(connection, error) from None
        if late:
            self.wall = max(wall, self.wall)
        self._note(clock.now() - begun, steps, outcomes)
        if self.log_bytes >= self._checkpoint_at:
            self._checkpoint_or_fail("PASSIVE")
        return outcomes

    def _execute(self, connection: sqlite3.Connection, step: _Step | None) -> Outcome:
        if step is None:
            return Outcome.FAILED
        try:
            changed = connection.execute(step.statement, step.parameters).rowcount
        except _REFUSED:
            if not connection.in_transaction:
                raise
            log.exception("a change of a key was refused by the database")
            return Outcome.FAILED
        return Outcome.DONE if changed == 1 else Outcome.FAILED

    def _rolled_back(
        self, connection: sqlite3.Connection, error: sqlite3.Error | MemoryError
    ) -> DiskFull | DataError:
        full = disk_full(error) if isinstance(error, sqlite3.Error) else None
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            full = None
        return full or self._fail(error)

    def _note(
        self, seconds: float, steps: Sequence[_Step | None], outcomes: Sequence[Outcome]
    ) -> None:
        self._recent[self._commits % RECENT] = seconds
        self._commits += 1
        self._changes += outcomes.count(Outcome.DONE)
        self._in_log += len(steps)
        if self._unknown_tokens:
            for step, outcome in zip(steps, outcomes):
                if step is not None and outcome is Outcome.DONE:
                    self._unknown_tokens.discard(step.key)

    # ---- the log --------------------------------------------------------------------------

    @property
    def log_bytes(self) -> int:
        """The bytes of the log's file, which keeps its size when the log begins again."""
        try:
            return os.stat(self._log_path).st_size
        except FileNotFoundError:
            return 0

    def _checkpoint(self, mode: str) -> bool:
        """Copy the log into the database. Returns whether all of it was. Raises DiskFull and
        sqlite3.Error.

        While another program reads the database, a part of the log has to stay.
        """
        connection = self._connection
        try:
            row = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            raise disk_full(error) or error from None
        busy, frames, copied = row
        done = not busy and frames == copied
        size = self.log_bytes
        # The log's file has grown beyond its size here only when the log is as long again.
        self._checkpoint_at = max(self._log_bytes, size + 1 if done else size + self._log_bytes)
        if done:
            self._in_log = 0
        return done

    def _checkpoint_at_once(self, mode: str) -> None:
        """The same, without waiting for a backup that reads the database."""
        connection = self._connection
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._checkpoint(mode)
        finally:
            connection.execute(f"PRAGMA busy_timeout = {self._busy_ms}")

    def _checkpoint_or_fail(self, mode: str) -> None:
        """A checkpoint during the service: a full disk, or a program that reads, is no failure."""
        if self.log_bytes >= 2 * self._log_bytes:
            mode = "TRUNCATE"
        try:
            with contextlib.suppress(DiskFull):
                self._with_reserve(partial(self._checkpoint_at_once, mode))
        except (sqlite3.Error, OSError) as error:
            raise self._fail(error) from None

    # ---- a full disk ----------------------------------------------------------------------

    def _with_reserve(self, work: Callable[[], object]) -> None:
        """Do it, and if the disk is full give up the reserve and do it again. Raises DiskFull."""
        try:
            work()
        except DiskFull:
            self._reserve.release()
            work()

    def _has_reserve(self, *, now: bool = False) -> bool:
        """Whether the reserve is held; if not, try to take it, once in a while or ``now``."""
        if self._reserve.held:
            return True
        if now or clock.now() >= self._reserve_at:
            self._reserve_at = clock.now() + RETRY_EVERY
            try:
                if self._reserve.take():
                    log.warning("the disk of %s has room again; values are stored", self._folder)
            except OSError as error:
                raise self._fail(error) from None
        return self._reserve.held

    def _warn_of_full_disk(self) -> None:
        self._full_disk_log.warning(
            "the disk of %s is full; deletions go on, but no value is stored before there is room",
            self._folder,
        )

    def _apply_what_frees(
        self, steps: Sequence[_Step | None], full: DiskFull | None = None
    ) -> list[Outcome]:
        """Carry out deletions and deadlines, and refuse the rest."""
        freeing = [step for step in steps if step is not None and step.frees]
        overwrite = full is not None and full.in_log
        ended: Iterator[Outcome] = iter(())
        if freeing or overwrite:
            self._checkpoint_or_fail("TRUNCATE")  # the room of the log may do
            ended = iter(self._apply_in_parts(freeing, overwrite))
            self._checkpoint_or_fail("TRUNCATE")
            self._has_reserve(now=True)
        return [
            Outcome.FAILED if step is None else next(ended) if step.frees else Outcome.FULL
            for step in steps
        ]

    def _apply_in_parts(self, steps: list[_Step], overwrite: bool) -> list[Outcome]:
        """Carry out changes that free space, in fewer at a time if there is no room for all.

        ``overwrite``: something has to be committed in any case, over what was left in the log.
        """
        outcomes: list[Outcome] = []

        def work() -> None:
            outcomes[:] = self._transaction(steps)

        try:
            self._with_reserve(work)
        except DiskFull:
            if len(steps) > 1:
                self._checkpoint_or_fail("TRUNCATE")
                half = len(steps) // 2
                first = self._apply_in_parts(steps[:half], overwrite)
                return first + self._apply_in_parts(steps[half:], overwrite)
            if overwrite:
                raise self._fail("the disk is full") from None
            return [Outcome.FULL] * len(steps)
        return outcomes

    # ---- figures --------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """Return what can be measured, for reports. Sizes are in bytes and times in milliseconds.

        The times are those of the last ``RECENT`` commits. May be called from any thread.
        """
        recent = [1e3 * seconds for seconds in self._recent[: self._commits]]
        return {
            "commits": self._commits,
            "changes": self._changes,
            "damaged": self._damaged,
            "database_bytes": os.path.getsize(self.path) if os.path.exists(self.path) else 0,
            "log_bytes": self.log_bytes,
            "reserve_bytes": self._reserve.size if self._reserve.held else 0,
            "commit_ms_mean": sum(recent) / len(recent) if recent else 0.0,
            "commit_ms_max": max(recent, default=0.0),
        }
