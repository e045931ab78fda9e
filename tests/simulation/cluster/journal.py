"""The simulated journal of a member: it writes to the database, with the fences of its partitions.

Batches are written one after the other, some of them together in one transaction. When it is not
known what has become of a transaction the journal raises the fences and does in the same
transaction what is left to do, which it knows from the tokens of the rows. The first transaction
can come after that, and is refused then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from dstore.core.cluster.messages import Partition
from dstore.core.engine import Change, ChangeKind, Kept, Outcome
from dstore.protocol.partitions import partition_of
from tests.simulation.cluster.servers import Client, Connection, Database, Transaction
from tests.simulation.cluster.tables import KEPT, PARTITION

TOGETHER = 3
"""Batches that are written in one transaction, at most."""
Batch = tuple[int, list[Change]]
Report = Callable[[int, list[Outcome]], None]


class Fenced:
    """The result of a transaction that found another owner or another fence."""


FENCED = Fenced()


class ClusterJournal:
    """``report`` is called with a batch that has ended, and ``fenced`` if none can any more."""

    def __init__(
        self,
        database: Database,
        owner: Client,
        me: bytes,
        report: Report,
        fenced: Callable[[], None],
    ) -> None:
        self.fences: dict[int, int] = {}
        self._me = me
        self._connection = Connection(database, owner, "journal")
        self._loop = database.loop
        self._report = report
        self._fenced = fenced
        self._waiting: deque[Batch] = deque()
        self._writing: list[Batch] = []
        self._doubts = 0  # transactions with these batches of which the outcome is not known
        self._closed = False

    def own(self, number: int, fence: int) -> None:
        """From now on write to a partition, with this fence."""
        self.fences[number] = fence

    def disown(self, numbers: Iterable[int]) -> None:
        """Write to these partitions no more. Nothing that is under way changes them."""
        for number in numbers:
            self.fences.pop(number, None)

    def commit(self, number: int, changes: list[Change]) -> None:
        self._waiting.append((number, changes))
        self._write()

    def close(self) -> None:
        """Write nothing more. What is under way may still be written."""
        self._closed = True
        self._connection.close()

    def _write(self) -> None:
        if self._closed or self._writing or not self._waiting:
            return
        count = min(len(self._waiting), self._loop.dice.randint(1, TOGETHER))
        self._writing = [self._waiting.popleft() for _ in range(count)]
        self._doubts = 0
        self._run(_transaction)

    def _written(self, result: Any) -> None:
        if self._closed:
            return
        if result is FENCED:
            self._fenced()
            return
        if result is None:
            self._doubts += 1
            self._loop.counts["batches in doubt"] += 1
            self._run(_resolution)
            return
        outcomes, fences = result
        self.fences.update(fences)
        batches, self._writing = self._writing, []
        for (number, _), each in zip(batches, outcomes):
            self._report(number, each)
        self._write()

    def _run(self, body: Callable[[Writing, Transaction], Any]) -> None:
        changes = [changes for _, changes in self._writing]
        touched = sorted({partition_of(each.key) for batch in changes for each in batch})
        fences = {number: self.fences.get(number, -1) for number in touched}
        writing = Writing(self._me, changes, fences, self._doubts - 1)
        self._connection.run(partial(body, writing), self._written)


# ---- transactions -------------------------------------------------------------------------------


class Writing(NamedTuple):
    """What one transaction writes, as it was when it was sent: batches, and the fences of the
    partitions that they touch. ``attempts`` before it may have raised these."""

    me: bytes
    batches: list[list[Change]]
    fences: dict[int, int]
    attempts: int

    def is_mine(self, row: Partition, number: int, attempts: int) -> bool:
        """Whether a row has this owner, and a fence that this journal has seen or may have made."""
        return row.owner == self.me and 0 <= row.fence - self.fences[number] <= attempts


def _transaction(writing: Writing, rows: Transaction) -> Any:
    """Check the fences, which stay as they are until this has ended, and write."""
    for number in writing.fences:
        rows.share((PARTITION, number))
        if not writing.is_mine(rows.get((PARTITION, number)), number, 0):
            return FENCED
    return _applied(writing, rows), {}


def _resolution(writing: Writing, rows: Transaction) -> Any:
    """Raise the fences, and write what is not written. The fence may have been raised by an attempt
    before this one, of which the outcome is not known either. Each attempt raises it to a value of
    its own, so that those before this one do nothing if they come later."""
    raised = {}
    for number in writing.fences:
        name = (PARTITION, number)
        rows.lock(name)
        row: Partition = rows.get(name)
        if not writing.is_mine(row, number, writing.attempts):
            return FENCED
        fence = raised[number] = writing.fences[number] + writing.attempts + 1
        rows.put(name, row._replace(fence=fence))
    return _applied(writing, rows), raised


def _applied(writing: Writing, rows: Transaction) -> list[list[Outcome]]:
    return [[_apply(change, rows) for change in batch] for batch in writing.batches]


def _apply(change: Change, rows: Transaction) -> Outcome:
    """Do what a change says, unless that was done before."""
    kind, key, token, stored, deadline = change
    name = (KEPT, key)
    rows.lock(name)
    row: Kept | None = rows.get(name)
    if stored is not None and row is not None and row.token == stored.token:
        return Outcome.DONE
    if kind is ChangeKind.REMOVE and row is None:
        return Outcome.DONE
    if (row.token if row else b"") != token:
        return Outcome.FAILED
    if kind is ChangeKind.REMOVE:
        rows.put(name, None)
    elif kind is ChangeKind.DEADLINE:
        assert row is not None
        rows.put(name, row._replace(deadline=deadline))
    else:
        assert stored is not None
        rows.put(name, Kept(key, stored.token, stored, deadline))
    return Outcome.DONE
