"""What a member of a cluster keeps in PostgreSQL, as the Global that it is a part of sees it.

There are four connections, each with a thread: for the directory and for loading partitions
(threads of the caller), for the journal, and for the bytes of values that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from dstore.core.cluster.messages import Ask, View
from dstore.core.engine import Bulk, Change, Outcome
from dstore.protocol.messages import DAMAGED, Key, Large, Stored
from dstore.protocol.partitions import partition_of
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.postgres.connections import Link, Target, Unavailable, Watch
from dstore.server.postgres.directory import Directory
from dstore.server.postgres.engine import KeptRow, StoredEngine
from dstore.server.postgres.journal import PostgresJournal
from dstore.server.postgres.large import LargeValues, StoredBulk
from dstore.server.postgres.loading import Loading
from dstore.server.postgres.values import Values

log = Log("dstore.global")

LARGE_SHARE = 0.5
"""The share of a member's ``memory_limit`` that large values may take. The rest is for keys and
small values."""
WAITING_SHARE = 0.125
"""The share of it that values may take which wait for the database; others are refused."""


class Store:
    """The database of a cluster, and what this process has in memory of it.

    Global's thread calls all methods, except that one other thread calls :meth:`carry_out`, and one
    :meth:`load`. All may raise DataError. ``memory_limit`` is in bytes, ``patience`` in seconds;
    see :func:`dstore.server.postgres.open_store`.

    The order of a life is: make it; :meth:`begin`; carry out asks; for partitions that are gained
    :meth:`own`, :meth:`load` and :meth:`bind`, then answer; :meth:`disown` what is handed over, or
    :meth:`reset` after a loss; :meth:`close`.
    """

    def __init__(self, url: str, *, memory_limit: int, patience: float) -> None:
        target = self._target = Target(url, patience)
        self._links = [Link(target, each) for each in ("directory", "journal", "load", "values")]
        directory, journal, load, values = self._links
        self._large_memory = int(memory_limit * LARGE_SHARE)
        self._memory = memory_limit - self._large_memory
        self._watch = Watch(self._links)
        self._directory = Directory(directory)
        self._journal = PostgresJournal(journal, waiting_max=int(memory_limit * WAITING_SHARE))
        self._loading = Loading(load, room=self._memory // 2)
        self._values = Values(values)
        self._large = LargeValues()
        self._bulk: StoredBulk | None = None
        self._engine = self._new_engine()
        self._log = RateLimitedLog(log)
        self._closed = False
        self._watch.begin()
        try:
            directory.open()  # what is wrong with the database is said at once
        except Unavailable as error:
            directory.drop()
            log.warning("%s; this is tried again until it can be used", str(error))
        except BaseException:
            directory.drop()
            self._watch.close()
            raise

    def __repr__(self) -> str:
        return f"<Store {self._links[0].target.where} {self._engine!r} {self._journal!r}>"

    def _new_engine(self) -> StoredEngine:
        return StoredEngine(self._values, memory=self._memory)

    # ---- life -------------------------------------------------------------------------------

    def begin(self, me: bytes, wake: Callable[[], object]) -> None:
        """Take the id of the member, and what wakes Global's thread, and start the threads.

        Raises RuntimeError if there can be no more threads.
        """
        self._journal.begin(me, wake)
        self._values.begin()

    def close(self) -> None:
        """End the threads and close the connections. What is under way may happen or not.

        It takes no longer than a connection to hosts that do not answer. Idempotent. Threads that
        carry out asks or load get DataError.
        """
        if self._closed:
            return
        self._closed = True
        for link in self._links:
            link.close()
        self._journal.close()
        self._values.close()
        for link in self._links:
            link.end()
        self._watch.close()
        self._engine.close()

    def forked(self) -> None:
        """In a forked child: leave everything to the parent."""
        self._closed = True
        self._journal.forked()
        self._values.forked()
        self._watch.forked()

    @property
    def cluster(self) -> bytes:
        """The id of the cluster; no bytes until the database has answered for the first time."""
        return self._target.cluster

    def carry_out(self, ask: Ask) -> View | None:
        """Carry out an ask. None, or DataError: it failed, or it is not known what became of it."""
        return self._directory.carry_out(ask)

    # ---- partitions -------------------------------------------------------------------------

    @property
    def engine(self) -> StoredEngine:
        """The keys of the partitions that are owned. Another object after :meth:`reset`."""
        return self._engine

    @property
    def fences(self) -> Mapping[int, int]:
        """The partitions that are owned, with the newest fences that are known."""
        return self._journal.fences

    def own(self, fences: Mapping[int, int]) -> None:
        """Take note of partitions that are owned from now on, with their fences."""
        self._journal.own(fences)

    def load(self, numbers: Collection[int]) -> Iterator[list[KeptRow]]:
        """Yield the rows of partitions that are owned, page by page.

        It also has the pieces of large values removed that no row names. Raises DataError.
        """
        fences = self._journal.fences
        wanted = {number: fences[number] for number in numbers if number in fences}
        if len(wanted) != len(numbers):
            raise self._links[0].target.refused("partitions that are to be loaded are lost")
        for page in self._loading.load(wanted):
            for partition, token in page.orphans:
                self._journal.drop_pieces(partition, token)
            yield page.rows

    def bind(self, rows: Collection[KeptRow]) -> list[tuple[Key, bytes, float]]:
        """Bind a page of rows. Returns the deadlines: keys, tokens, times of the wall clock."""
        bound = []
        for row in rows:
            if not self._readable(row):
                row = row._replace(bound=Stored(row.bound.token, DAMAGED, b""))
            bound.append(row)
        damaged = sum(row.bound.codec == DAMAGED for row in bound)
        if damaged:
            self._log.warning(
                "%d large values have lost their bytes in the database; reading them raises "
                "ValueCorrupt, and their keys can be deleted or replaced",
                damaged,
            )
        return self._engine.bind_all(bound)

    def _readable(self, row: KeptRow) -> bool:
        """Note a large value. False if another one has its token: bytes are found by the token."""
        stored = row.bound
        if not isinstance(stored, Stored) or type(stored.body) is not Large:
            return True
        return self._large.add(stored.token, partition_of(row.key), stored.size)

    def forget(self, numbers: Collection[int]) -> Iterator[None]:
        """Remove from memory what was bound of partitions, some of it at each step of the result.

        Nothing else is bound in them before its end.
        """
        for tokens in self._engine.forget(frozenset(numbers)):
            self._large.forget(tokens)
            if self._bulk is not None:
                self._bulk.forget(tokens)
            yield

    def disown(self, numbers: Collection[int]) -> None:
        """Take note that partitions are not owned any more. :meth:`forget` is to follow.

        No change of theirs is under way.
        """
        self._journal.disown(numbers)

    def reset(self) -> None:
        """Own nothing any more, and forget all. Returns at once.

        Batches that are under way may be carried out or not; nothing more is said about them.
        """
        self._journal.reset()
        self._engine.close()
        self._engine = self._new_engine()
        self._large = LargeValues()
        self._bulk = None

    # ---- an epoch ---------------------------------------------------------------------------

    def bulk(self, inner: Bulk) -> Bulk:
        """Return the place for large values of an epoch: in ``inner``, and in the database."""
        self._bulk = StoredBulk(inner, self._large, self._journal, self._large_memory)
        return self._bulk

    @property
    def news(self) -> bool:
        """Whether :meth:`committed` has anything to say."""
        return self._journal.news

    def commit(self, number: int, changes: list[Change]) -> None:
        """Take a batch of changes, and return at once; see :class:`dstore.core.engine.Journal`."""
        assert self._bulk is not None
        self._journal.commit(number, changes, self._bulk.keep)

    def committed(self) -> list[tuple[int, list[Outcome]]]:
        """Return the batches that have ended.

        Raises DataError if nothing more is committed; :meth:`reset` is to follow.
        """
        return self._journal.committed()

    def figures(self) -> dict[str, object]:
        """Return metrics, by name."""
        return {
            **self._engine.figures(),
            "large_values": len(self._large),
            "large_memory": 0 if self._bulk is None else self._bulk.held_bytes,
            "large_memory_limit": self._large_memory,
            "database_doubts": self._journal.doubts,
            "database_groups": self._journal.groups,
            "database_changes": self._journal.changes,
            "database_connections": sum(link.connections for link in self._links),
        }
