"""The journal of a member: one thread commits to the database what Global's thread hands over.

Batches that wait are committed together, in one statement under the fences of their partitions (see
:mod:`~dstore.server.postgres.writing`).

*In doubt.* If the connection is lost, or the server warns when it commits, it is not known whether
the changes have been carried out, or whether a failover would lose them. Then the fences of their
partitions are raised. When that has been committed, what was in doubt has either happened, and is
replicated, or never will. The keys are read; the changes that did not happen are carried out under
the new fences. Until then nothing is reported, so Global goes on to answer what was before.

*Lives.* What belongs to one time of ownership, from a join to a loss, is a :class:`Life`. When
Global has given up all, its batches are forgotten, whatever becomes of them: the next claim of the
partitions raises their fences, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import psycopg

from dstore.core.engine import Change, ChangeKind, Outcome
from dstore.errors import DataError, DstoreError, StoreFull
from dstore.protocol.messages import Large, Stored
from dstore.protocol.partitions import partition_of
from dstore.runtime import native
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.postgres import writing
from dstore.server.postgres.connections import Link
from dstore.server.postgres.large import Writer
from dstore.server.postgres.schema import Connection
from dstore.server.postgres.writing import Fenced, Fences, NoStandby, Released

log = Log("dstore.global")

GROUP_CHANGES_MAX = 2_000
"""Changes in one group from which on no further batch is added to it."""
GROUP_BYTES_MAX = 4 << 20
"""Bytes of the values in one group from which on no further batch is added to it."""
RETRY_PAUSE = 0.2
"""Seconds until a database is tried again that cannot be reached."""

T = TypeVar("T")
Ended: TypeAlias = tuple[int, list[Outcome]]

_NO_ROOM = "53"  # the class of errors for a server that lacks a resource
_OF_THE_VALUES = ("21", "22", "23", "42", "54")
"""The classes of errors that another try would bring again: the fault is in what is written."""


_REFUSED = psycopg.Error, ValueError, OverflowError
"""What comes of a value that cannot be written."""


class Doubt(Exception):
    """It is not known what has become of a statement, or it has failed and may be tried again."""


class Over(Exception):
    """The life has ended to which a batch belongs."""


Keep: TypeAlias = Callable[[Stored, int, Writer], None]
"""Makes the bytes of a large value of a partition durable; see :meth:`StoredBulk.keep`."""


class Life:
    """What a member owns from a join to a loss: partitions with their fences, and what has ended.

    ``news`` is set when all that it stands for is there, and cleared before that is taken.
    """

    def __init__(self) -> None:
        self.fences: dict[int, int] = {}
        self.gained: dict[int, int] = {}  # how often each partition was
        self.news = False
        self.over = False
        self.failed: DataError | None = None
        self.ended: deque[Ended] = deque()
        self.taken_bytes = 0  # of values, so far; only Global's thread changes it
        self.ended_bytes = 0  # of these; only the journal's thread changes it


class Batch(NamedTuple):
    """What one call of :meth:`PostgresJournal.commit` has handed over."""

    life: Life
    number: int
    changes: list[Change]
    keep: Keep
    size: int

    @property
    def weight(self) -> int:
        return len(self.changes)


class Drop(NamedTuple):
    """A large value that is to be removed."""

    life: Life
    partition: int
    token: bytes
    times: int  # a partition that was given up and gained again may have another such value
    size: int = 0
    weight: int = 1


Work: TypeAlias = "Batch | Drop"
W = TypeVar("W", Batch, Drop)


class PostgresJournal:
    """See the module, and :class:`dstore.core.engine.Journal`.

    Values that wait take ``waiting_max`` bytes at most: what comes beyond that ends as FULL.
    :meth:`drop_pieces` is safe from any thread; all others are for Global's thread.
    """

    def __init__(self, link: Link, *, waiting_max: int) -> None:
        self._link = link
        self._waiting_max = waiting_max
        self._me = b""
        self._wake: Callable[[], object] = int
        self._life = Life()
        self._taken: native.SimpleQueue[Work | None] = native.SimpleQueue()
        self._left: deque[Work | None] = deque()  # taken, and not of the group that was gathered
        self._stopped = native.ThreadEvent()
        self._thread: native.Thread | None = None
        self._log = RateLimitedLog(log)
        self.groups = self.doubts = self.changes = 0

    def __repr__(self) -> str:
        state = "failed" if self._life.failed else "idle" if self._thread is None else "committing"
        return f"<PostgresJournal {state}, partitions={len(self._life.fences)}>"

    # ---- Global's side ----------------------------------------------------------------------

    def begin(self, me: bytes, wake: Callable[[], object]) -> None:
        """Start the thread. Raises RuntimeError if there can be no more threads."""
        self._me, self._wake = me, wake
        thread = native.Thread(self._run, "dstore-committer")
        thread.start()
        self._thread = thread

    @property
    def fences(self) -> Mapping[int, int]:
        """The partitions that are owned, with their newest fences."""
        return self._life.fences

    @property
    def news(self) -> bool:
        """Whether :meth:`committed` has anything to say."""
        return self._life.news

    def own(self, fences: Mapping[int, int]) -> None:
        """Take note of partitions that are owned from now on."""
        life = self._life
        for number, fence in fences.items():
            life.gained[number] = life.gained.get(number, 0) + 1
            life.fences[number] = fence

    def disown(self, numbers: Iterable[int]) -> None:
        """Take note that partitions are given up. No change of theirs is under way."""
        for number in numbers:
            self._life.fences.pop(number, None)

    def reset(self) -> None:
        """Own nothing any more, and forget what is under way. Returns at once."""
        former, self._life = self._life, Life()
        former.over = True
        self._link.cut()  # it may wait for an answer that nobody needs

    def commit(self, number: int, changes: list[Change], keep: Keep) -> None:
        """Take a batch of changes, and return at once. ``keep`` is for its large values."""
        life = self._life
        size = _inline(changes)
        if size and life.taken_bytes - life.ended_bytes + size > self._waiting_max:
            changes = [change._replace(stored=None) for change in changes]  # which ends as FULL
            size = 0
        life.taken_bytes += size
        self._taken.put(Batch(life, number, changes, keep, size))

    def drop_pieces(self, partition: int, token: bytes) -> None:
        """Remove the pieces of a large value after the batches so far."""
        self._taken.put(_drop_of(self._life, partition, token))

    def committed(self) -> list[Ended]:
        """Return the batches that have ended since the last call.

        Raises DataError if nothing more is committed, when all that ended before was returned.
        """
        life = self._life
        life.news = False
        failed = life.failed  # read first: what ended before it failed is in the queue by now
        ended = []
        while life.ended:
            ended.append(life.ended.popleft())
        if failed is None:
            return ended
        if not ended:
            raise failed
        self._tell(life)  # of the next call, which raises
        return ended

    def _tell(self, life: Life) -> None:
        life.news = True
        self._wake()

    def close(self) -> None:
        """End the thread. What is under way may be carried out or not. Idempotent."""
        self._life.over = True
        self._stopped.set()
        self._link.close()
        self._taken.put(None)
        if self._thread is not None:
            self._thread.join()

    def forked(self) -> None:
        """In a forked child: the thread is not here."""
        self._thread = None
        self._wake = int

    # ---- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._next()) is not None:
            life = work.life
            try:
                if life.over:
                    continue
                if isinstance(work, Batch):
                    self._commit(self._gather(work))
                else:
                    self.drop_now(self._gather(work))
            except Over:
                pass
            except Fenced:
                self._fail(life, "another member owns a partition that was to be written to")
            except Exception as error:
                log.exception("the committer failed")
                self._fail(life, repr(error))
        self._link.drop()

    def _fail(self, life: Life, why: str) -> None:
        life.over = True
        life.failed = DataError(f"nothing more can be written to {self._link.target.where}: {why}")
        self._tell(life)

    def _next(self) -> Work | None:
        return self._left.popleft() if self._left else self._taken.get()

    def _gather(self, first: W) -> list[W]:
        """Return what waits and is of one kind and life, within the bounds of a group."""
        group = [first]
        count, size = first.weight, first.size
        while count < GROUP_CHANGES_MAX and size < GROUP_BYTES_MAX:
            try:
                each = self._taken.get_nowait()
            except native.Empty:
                break
            if type(each) is not type(first) or each.life is not first.life:
                self._left.append(each)
                break
            group.append(each)
            count += each.weight
            size += each.size
        return group

    def _commit(self, group: list[Batch]) -> None:
        life = group[0].life
        refused = self._keep_large(group)
        changes = [change for batch in group for change in batch.changes]
        kept = [change for place, change in enumerate(changes) if place not in refused]
        done = iter(self._write_all(life, kept))
        outcomes = [
            refused[place] if place in refused else next(done) for place in range(len(changes))
        ]
        self.groups += 1
        self.changes += len(changes)
        start = 0
        for batch in group:
            end = start + len(batch.changes)
            life.ended_bytes += batch.size
            life.ended.append((batch.number, outcomes[start:end]))
            start = end
        self._tell(life)

    def _keep_large(self, group: list[Batch]) -> dict[int, Outcome]:
        """Write large values. Returns the places of the changes that are refused, and why."""
        refused: dict[int, Outcome] = {}
        changes = ((batch, change) for batch in group for change in batch.changes)
        for place, (batch, change) in enumerate(changes):
            stored = change.stored
            if stored is None and change.kind in (ChangeKind.BIND, ChangeKind.REPLACE):
                refused[place] = Outcome.FULL
            if stored is None or type(stored.body) is not Large:
                continue
            try:
                batch.keep(stored, partition_of(change.key), _Pieces(self, batch.life))
            except StoreFull:
                refused[place] = Outcome.FULL
            except (DstoreError, *_REFUSED) as error:
                self._log.warning("a large value cannot be kept: %s", str(error))
                refused[place] = Outcome.FAILED
        return refused

    def put_pieces(
        self, life: Life, partition: int, token: bytes, first: int, bodies: Sequence[bytes]
    ) -> None:
        """Write pieces, in this thread. Raises Fenced, Over, StoreFull and psycopg.Error."""

        def put(connection: Connection) -> None:
            fences = self._fences(life, {partition})
            writing.put_pieces(connection, fences, partition, token, first, bodies)

        self._repeat(life, partition, put)

    def drop_now(self, drops: list[Drop]) -> None:
        """Remove large values of partitions that are still owned, in this thread. Raises Over."""
        life = drops[0].life
        tokens: dict[int, list[bytes]] = {}
        for each in drops:
            if each.times == life.gained.get(each.partition):
                tokens.setdefault(each.partition, []).append(each.token)
        for partition, dropped in tokens.items():

            def drop(
                connection: Connection, partition: int = partition, tokens: list[bytes] = dropped
            ) -> None:
                fences = self._fences(life, {partition})
                writing.drop_pieces(connection, fences, partition, tokens)

            try:
                self._repeat(life, partition, drop)
            except Fenced:
                pass  # the next owner removes what no row names
            except (StoreFull, *_REFUSED) as error:
                self._log.warning("large values cannot be removed now: %s", str(error))

    # ---- statements -------------------------------------------------------------------------

    def _write_all(self, life: Life, changes: Sequence[Change]) -> list[Outcome]:
        """Carry out changes in their order. One statement changes a key once."""
        outcomes: list[Outcome] = []
        start = 0
        seen: set[str] = set()
        for place, change in enumerate(changes):
            if change.key in seen:
                outcomes += self._write(life, changes[start:place])
                start = place
                seen.clear()
            seen.add(change.key)
        if start < len(changes):
            outcomes += self._write(life, changes[start:])
        return outcomes

    def _write(self, life: Life, changes: Sequence[Change]) -> list[Outcome]:
        """Carry out changes of different keys. Raises Fenced and Over."""
        touched = writing.touched(changes)
        try:
            return self._attempt(
                life, lambda session: writing.apply(session, self._fences(life, touched), changes)
            )
        except Doubt:
            outcomes = self._settle(life, touched, changes)
        except StoreFull:
            return [Outcome.FULL if change.stored else Outcome.FAILED for change in changes]
        except _REFUSED as error:
            if len(changes) > 1:  # one of them is at fault
                return [self._write(life, [change])[0] for change in changes]
            self._log.warning("a value cannot be written to the database: %s", str(error))
            return [Outcome.FAILED]
        left = [change for change, outcome in zip(changes, outcomes) if outcome]
        if not left:
            return outcomes
        done = iter(self._write(life, left))
        return [next(done) if outcome else outcome for outcome in outcomes]

    def _settle(self, life: Life, touched: set[int], changes: Sequence[Change]) -> list[Outcome]:
        """Find out which changes that were in doubt have happened; no other one will.

        Raises Fenced and Over.
        """
        self.doubts += 1
        attempts = 0
        while True:
            try:
                return self._attempt(
                    life, partial(self._find_out, life, touched, changes, attempts)
                )
            except Doubt:
                attempts += 1
                self._stopped.wait(RETRY_PAUSE)

    def _find_out(
        self,
        life: Life,
        touched: set[int],
        changes: Sequence[Change],
        attempts: int,
        connection: Connection,
    ) -> list[Outcome]:
        """Raise the fences, and read which changes have happened, over the same connection.

        Another one may be to a server that was replaced and goes on. It may show what will be lost.
        """
        raised = writing.raise_fences(connection, self._fences(life, touched), attempts)
        if self._link.warns:
            raise Doubt
        life.fences.update(raised)
        return writing.took_effect(connection, changes)

    def _repeat(self, life: Life, partition: int, work: Callable[[Connection], None]) -> None:
        """Do what can be done again without harm, until it is known that it was done.

        What was in doubt and is there already may be lost in a failover. The barrier says that it
        will not.
        """
        while True:
            try:
                return self._attempt(life, work)
            except Doubt:
                self._settle(life, {partition}, ())

    def _fences(self, life: Life, touched: set[int]) -> Fences:
        try:
            fences = {number: life.fences[number] for number in touched}
        except KeyError:
            raise Fenced from None
        return Fences(self._me, fences, self._link.standby)

    def _attempt(self, life: Life, work: Callable[[Connection], T]) -> T:
        """Do something over a connection that works; wait until there is one.

        Raises Doubt if it is not known that it was done, Over, Fenced, StoreFull, and psycopg.Error
        if what is written is at fault.
        """
        while True:
            if life.over:
                raise Over
            try:
                connection = self._link.open()
            except DataError as error:
                self._pause(error)
                continue
            self._link.warning()  # of before
            try:
                if life.over:  # else what it does could be of a later life, see writing
                    raise Over
                with self._link.limited():
                    done = work(connection)
            except NoStandby as error:
                self._link.drop()
                self._pause(error)
                continue
            except Released:
                self._log.warning("a commit is in doubt: synchronous_standby_names was emptied")
                self._link.drop()
                raise Doubt from None
            except psycopg.Error as error:
                raise self._judge(connection, error) from None
            if warning := self._link.warning():
                self._log.warning("a commit is in doubt: the database warns: %s", warning)
                raise Doubt
            return done

    def _judge(self, connection: Connection, error: psycopg.Error) -> Exception:
        """Return what an error means."""
        state = error.sqlstate or ""
        lost = connection.closed
        refused = (
            state.startswith(_OF_THE_VALUES) if state else isinstance(error, psycopg.DataError)
        )
        if not lost and refused:
            return error
        if not lost and state.startswith(_NO_ROOM):
            return StoreFull(str(self._link.target.error("has no room", error)))
        if not self._stopped.is_set():
            self._log.warning("%s", str(self._link.target.error("has failed", error)))
        self._link.drop()
        self._stopped.wait(RETRY_PAUSE if not lost else 0.0)
        return Doubt()

    def _pause(self, error: Exception) -> None:
        self._log.warning("writes wait for the database: %s", str(error))
        self._stopped.wait(RETRY_PAUSE)


class _Pieces:
    """Writes the pieces of a large value for :meth:`StoredBulk.keep`."""

    def __init__(self, journal: PostgresJournal, life: Life) -> None:
        self._journal = journal
        self._life = life

    def put_pieces(self, partition: int, token: bytes, first: int, bodies: Sequence[bytes]) -> None:
        self._journal.put_pieces(self._life, partition, token, first, bodies)

    def drop_pieces(self, partition: int, token: bytes) -> None:
        self._journal.drop_now([_drop_of(self._life, partition, token)])


def _drop_of(life: Life, partition: int, token: bytes) -> Drop:
    return Drop(life, partition, token, life.gained.get(partition, 0))


def _inline(changes: Iterable[Change]) -> int:
    return sum(change.stored.inline for change in changes if change.stored is not None)
