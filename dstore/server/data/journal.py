"""The journal of a durable Global: one thread commits the changes that Global's loop hands over.

Batches that wait are committed together in one transaction (*group commit*). While the disk syncs
one group the next one gathers, and the clients of a group share the price of its sync. One alone
waits for nothing but its own.

Global's thread and the committer share two queues and nothing else: :meth:`DataJournal.commit` puts
batches into one, and the committer puts their outcomes into the other and calls ``wake``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from dstore.core.engine import Change, Outcome
from dstore.errors import DataError, DstoreError, StoreFull
from dstore.protocol.messages import Large, Stored
from dstore.runtime import native
from dstore.runtime.logs import Log
from dstore.server.data.database import Database
from dstore.server.data.failures import cannot_write
from dstore.server.data.reserve import NO_ROOM

log = Log("dstore.global")

GROUP_CHANGES_MAX = 10_000
"""Changes in one group from which on no further batch is added to it."""
GROUP_BYTES_MAX = 8 << 20
"""Bytes of the values in one group from which on no further batch is added to it."""
IDLE_AFTER = 1.0
"""Seconds without work after which the committer does what can wait."""

Ended = tuple[int, list[Outcome]]


class Batch(NamedTuple):
    """What one call of :meth:`DataJournal.commit` has handed over."""

    number: int
    changes: list[Change]


Work = Callable[[], object]
"""What the committer calls between two groups."""


class DataJournal:
    """Makes changes durable in a :class:`~dstore.server.data.database.Database`.

    See :class:`dstore.core.engine.Journal` for :meth:`commit` and :meth:`committed`. ``keep`` is
    called in the committer thread for each change that binds a large value, before its row commits,
    and makes the bytes of the value durable. If it raises StoreFull, or OSError because the disk is
    full, the outcome is FULL; for another DstoreError it is FAILED. Another OSError ends the
    journal.

    The database belongs to the caller until :meth:`begin`, and to the committer thread from then on
    to the end of :meth:`close`. ``news`` is whether :meth:`committed` has anything to say.
    """

    def __init__(self, database: Database, keep: Callable[[Stored], None]) -> None:
        self._database = database
        self._keep = keep
        self.news = (
            False  # set when all that it stands for is there, and cleared before that is taken
        )
        self._taken: native.SimpleQueue[Batch | Work | None] = native.SimpleQueue()
        self._ended: deque[Ended] = deque()
        self._failed: DataError | None = None
        self._wake: Work = int
        self._thread: native.Thread | None = None

    def __repr__(self) -> str:
        state = "failed" if self._failed else "idle" if self._thread is None else "committing"
        return f"<DataJournal {state}, waiting={self._taken.qsize()}>"

    # ---- Global's side ----------------------------------------------------------------------

    def begin(self, wake: Work) -> None:
        """Start the committer. It calls ``wake`` after each group, and when it fails.

        Raises RuntimeError if there can be no more threads.
        """
        self._wake = wake
        thread = native.Thread(self._run, "dstore-committer")
        thread.start()
        self._thread = thread

    def commit(self, number: int, changes: list[Change]) -> None:
        """Take a batch of changes, and return at once. Called from Global's thread only."""
        self._taken.put(Batch(number, changes))

    def committed(self) -> list[Ended]:
        """Return the batches that have ended since the last call: number, and an outcome each.

        Raises DataError if the journal has failed, when all that ended before has been returned.
        Called from Global's thread only.
        """
        self.news = False
        failed = self._failed  # read first: what ended before it failed is in the queue by now
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
        if failed is None:
            return ended
        if not ended:
            raise failed
        self._tell()  # of the next call, which raises
        return ended

    def _tell(self) -> None:
        self.news = True
        self._wake()

    def set_lease(self, seconds: float) -> None:
        """Record durably the longest lease that may be out.

        Before :meth:`begin` it is durable when this returns; raises DataError. Afterwards this
        returns at once, and the committer does it after the batches that it has taken.
        """
        self.call(partial(self._database.set_lease, seconds))

    def call(self, work: Work) -> None:
        """Have the committer call ``work`` after the batches so far; without one, call it here.

        An exception of ``work`` ends the journal.
        """
        if self._thread is None:
            work()
        else:
            self._taken.put(work)

    def close(self) -> None:
        """Commit what was taken, stop the committer, and close the database. Idempotent.

        May be called from any thread but the committer. Outcomes can be had afterwards, too. Raises
        DataError if the last checkpoint fails.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            self._taken.put(None)
            thread.join()
        self._database.close()

    def forked(self) -> None:
        """Forget the committer and the database, in a forked child. Nothing is closed."""
        self._thread = None
        self._wake = int
        self._database.forked()

    # ---- the committer's side ---------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except DataError as error:
            self._failed = error
        except BaseException as error:
            log.exception("the committer failed")
            self._failed = cannot_write(self._database.path, repr(error))
        self._tell()

    def _step(self) -> bool:
        """Wait for something to do, and do it. Returns whether to go on."""
        try:
            first = self._taken.get(timeout=IDLE_AFTER)
        except native.Empty:
            self._database.tend()
            return True
        group, then = self._gather(first)
        if group:
            self._commit(group)
            self._tell()
        if then is None:
            return False
        then()
        return True

    def _gather(self, first: Batch | Work | None) -> tuple[list[Batch], Work | None]:
        """Return the batches that wait, within the bounds of a group, and what follows them."""
        group: list[Batch] = []
        changes = size = 0
        each = first
        while isinstance(each, Batch):
            group.append(each)
            changes += len(each.changes)
            size += sum(change.stored.inline for change in each.changes if change.stored)
            if changes >= GROUP_CHANGES_MAX or size >= GROUP_BYTES_MAX:
                return group, _nothing
            try:
                each = self._taken.get_nowait()
            except native.Empty:
                return group, _nothing
        return group, each

    def _commit(self, group: list[Batch]) -> None:
        changes = [change for batch in group for change in batch.changes]
        refused = self._keep_large(changes)
        if not refused:
            outcomes = self._database.apply(changes)
        else:
            kept = [each for place, each in enumerate(changes) if place not in refused]
            ended = iter(self._database.apply(kept))
            outcomes = [
                refused[place] if place in refused else next(ended) for place in range(len(changes))
            ]
        start = 0
        for batch in group:
            end = start + len(batch.changes)
            self._ended.append((batch.number, outcomes[start:end]))
            start = end

    def _keep_large(self, changes: list[Change]) -> dict[int, Outcome]:
        """Make large values durable. Returns the places of those that could not be, and why."""
        refused = {}
        for place, change in enumerate(changes):
            stored = change.stored
            if stored is None or type(stored.body) is not Large:
                continue
            try:
                self._keep(stored)
            except StoreFull:
                refused[place] = Outcome.FULL
            except DstoreError:
                log.exception("a large value cannot be kept")
                refused[place] = Outcome.FAILED
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise cannot_write(self._database.path, error) from None
                refused[place] = Outcome.FULL
        return refused


def _nothing() -> None:
    """What is to be called after a group that nothing but batches follows."""
