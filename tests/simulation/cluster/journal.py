"""The simulated journal of a member: it writes to the database, with the fences of its partitions.

Batches are written one after the other, some of them together in one transaction. The pieces of
large values are written before, in transactions of their own. When it is not known what has become
of a transaction the journal raises the fences and does in the same transaction what is left to do,
which it knows from the tokens of the rows. The first transaction can come after that, and is
refused then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from dstore.core.cluster.messages import Partition
from dstore.core.engine import Change, ChangeKind, Kept, Outcome
from dstore.errors import ValueCorrupt
from dstore.protocol.messages import Large, Stored
from dstore.protocol.partitions import partition_of
from dstore.server.postgres.large import LargeValues, StoredBulk
from tests.simulation.cluster.servers import Body, Client, Connection, Database, Transaction
from tests.simulation.cluster.tables import KEPT, PARTITION, PIECE, Rows

TOGETHER = 3
"""Batches that are written in one transaction, at most."""
Report = Callable[[int, list[Outcome]], None]
Statement: TypeAlias = Generator[Body, Any, Any]
"""Yields what transactions do, and is sent their results; None: in doubt."""


class Fenced:
    """The result of a transaction that found another owner or another fence."""


FENCED = Fenced()


class Overtaken(Exception):
    """Another member owns a partition that was to be written to."""


class Batch(NamedTuple):
    """Changes, and the place where their large values are."""

    number: int
    changes: list[Change]
    bulk: StoredBulk | None


class Drop(NamedTuple):
    """A large value that is to be removed. The partition has been gained ``times`` by then."""

    partition: int
    token: bytes
    times: int


class ClusterJournal:
    """``report`` is called with a batch that has ended, and ``fenced`` if none can any more.

    ``values`` has the large values that are in the database.
    """

    def __init__(
        self,
        database: Database,
        owner: Client,
        me: bytes,
        report: Report,
        fenced: Callable[[], None],
        values: LargeValues | None = None,
    ) -> None:
        self.fences: dict[int, int] = {}
        self._me = me
        self._connection = Connection(database, owner, "journal")
        self._loop = database.loop
        self._report = report
        self._fenced = fenced
        self._values = values or LargeValues()
        self._gained: dict[int, int] = {}  # how often each partition was
        self._waiting: deque[Batch | Drop] = deque()
        self._work: Statement | None = None
        self._closed = False

    def own(self, number: int, fence: int) -> None:
        """From now on write to a partition, with this fence."""
        self.fences[number] = fence
        self._gained[number] = self._gained.get(number, 0) + 1

    def disown(self, numbers: Iterable[int]) -> None:
        """Write to these partitions no more. Nothing that is under way changes them."""
        for number in numbers:
            self.fences.pop(number, None)

    def commit(self, number: int, changes: list[Change], bulk: StoredBulk | None = None) -> None:
        self._waiting.append(Batch(number, changes, bulk))
        self._begin()

    def drop_pieces(self, partition: int, token: bytes) -> None:
        """Remove the pieces of a large value after the batches so far."""
        self._waiting.append(Drop(partition, token, self._gained.get(partition, 0)))
        self._begin()

    def close(self) -> None:
        """Write nothing more. What is under way may still be written."""
        self._closed = True
        self._connection.close()

    # ---- one transaction after the other --------------------------------------------------

    def _begin(self) -> None:
        if not self._closed and self._work is None and self._waiting:
            self._work = self._next()
            self._go_on(None)

    def _go_on(self, result: Any) -> None:
        if self._closed:
            return
        assert self._work is not None
        try:
            body = self._work.send(result)
        except StopIteration:
            self._work = None
            self._begin()
        except Overtaken:
            self._fenced()
        else:
            self._connection.run(body, self._go_on)

    def _next(self) -> Statement:
        """Do the first of what waits."""
        first = self._waiting.popleft()
        if isinstance(first, Drop):
            yield from self._drop(first)
            return
        group = [first]
        count = self._loop.dice.randint(1, TOGETHER)
        while len(group) < count and self._waiting:
            if not isinstance(each := self._waiting[0], Batch):
                break
            group.append(each)
            self._waiting.popleft()
        yield from self._commit(group)

    def _commit(self, group: list[Batch]) -> Statement:
        refused = yield from self._keep_large(group)
        changes = [[each for each in batch.changes if each not in refused] for batch in group]
        outcomes = yield from self._settled(_transaction, changes)
        for batch, each in zip(group, outcomes):
            done = iter(each)
            failed = [change in refused for change in batch.changes]
            self._report(batch.number, [Outcome.FAILED if it else next(done) for it in failed])

    def _keep_large(self, group: list[Batch]) -> Statement:
        """Write the pieces of large values. Returns the changes that are refused."""
        refused: list[Change] = []
        for bulk, change in [(each.bulk, one) for each in group for one in each.changes]:
            stored = change.stored
            if stored is None or type(stored.body) is not Large:
                continue
            assert bulk is not None
            try:
                yield from self._keep(bulk, stored, partition_of(change.key))
            except ValueCorrupt:
                self._loop.counts["large values that were lost before they were kept"] += 1
                refused.append(change)
        return refused

    def _keep(self, bulk: StoredBulk, stored: Stored, partition: int) -> Statement:
        """Do what :meth:`StoredBulk.keep` does. Raises ValueCorrupt."""
        if bulk.keeps(stored, partition):
            return
        token = stored.token
        try:
            for first, bodies in bulk.pieces(stored, partition):
                put = partial(_put_pieces, partition, token, first, bodies)
                yield from self._repeated(put, partition)
        except ValueCorrupt:
            self._values.drop(token)
            yield from self._repeated(partial(_drop_pieces, partition, token), partition)
            raise

    def _drop(self, drop: Drop) -> Statement:
        """Remove a large value, if its partition is still owned and was not lost meanwhile."""
        partition, token, times = drop
        if partition in self.fences and times == self._gained.get(partition):
            yield from self._repeated(partial(_drop_pieces, partition, token), partition)

    def _repeated(self, body: WriteBody, partition: int) -> Statement:
        """Do what can be done again without harm, until it is known that it was done."""
        while True:
            writing = self._writing([], {partition}, 0)
            result = yield partial(body, writing)
            if result is FENCED:
                raise Overtaken
            if result is not None:
                return
            yield from self._settled(None, [], {partition})

    def _settled(
        self,
        body: WriteBody | None,
        batches: list[list[Change]],
        touched: Iterable[int] = (),
    ) -> Statement:
        """Write batches, and when that is in doubt settle it. Without ``body`` it is in doubt.

        Returns their outcomes.
        """
        touched = {*touched, *(partition_of(each.key) for batch in batches for each in batch)}
        result = None
        if body is not None:
            result = yield partial(body, self._writing(batches, touched, 0))
        attempts = 0
        while result is None:
            self._loop.counts["batches in doubt"] += 1
            result = yield partial(_resolution, self._writing(batches, touched, attempts))
            attempts += 1
        if result is FENCED:
            raise Overtaken
        outcomes, fences = result
        self.fences.update(fences)
        return outcomes

    def _writing(
        self, batches: list[list[Change]], touched: Iterable[int], attempts: int
    ) -> Writing:
        fences = {number: self.fences.get(number, -1) for number in sorted(touched)}
        return Writing(self._me, batches, fences, attempts)


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


WriteBody: TypeAlias = Callable[[Writing, Transaction], Any]


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


def _put_pieces(
    partition: int,
    token: bytes,
    first: int,
    bodies: list[bytes],
    writing: Writing,
    rows: Transaction,
) -> Any:
    """Write pieces of a large value, under the fence of its partition. What is there stays."""
    if _transaction(writing, rows) is FENCED:
        return FENCED
    for number, body in enumerate(bodies, first):
        name = (PIECE, (partition, token, number))
        rows.lock(name)
        if rows.get(name) is None:
            rows.put(name, body)
    return True


def _drop_pieces(partition: int, token: bytes, writing: Writing, rows: Transaction) -> Any:
    """Remove the pieces of a large value, under the fence of its partition."""
    if _transaction(writing, rows) is FENCED:
        return FENCED
    for place in pieces_of(rows, partition, token):
        rows.lock((PIECE, place))
        rows.put((PIECE, place), None)
    return True


def pieces_of(rows: Rows, partition: int, token: bytes) -> list[tuple[int, bytes, int]]:
    """Return the places of the pieces of a large value, in order."""
    return [each for each in rows.names(PIECE) if each[:2] == (partition, token)]


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
