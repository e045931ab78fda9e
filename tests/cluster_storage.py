"""A database of a cluster in the memory of the tests' process, for Globals of that process.

It does what :mod:`dstore.core.cluster.messages` says, one transaction at a time, and whatever a
test asks for: it can be down, and commits can be held.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping

from dstore.core.cluster.messages import Ask, Beat, Leave, Member, Partition, View
from dstore.core.engine import NO_DEADLINE, Bulk, Change, ChangeKind, Kept, Loaded, Outcome
from dstore.errors import DataError
from dstore.protocol.clusters import CLUSTER_BYTES
from dstore.protocol.messages import Key, Stored
from dstore.protocol.partitions import PARTITIONS, partition_of
from dstore.server.cluster.storage import Deadline
from dstore.server.engines.memory import MemoryEngine
from dstore.server.settings import GlobalSettings

PAGE = 10
"""Rows that are loaded at a time."""


class FakeDatabase:
    """The tables. ``down``: nothing is answered; ``loading`` has to be set for rows to be read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cluster = os.urandom(CLUSTER_BYTES)
        self.members: dict[bytes, Member] = {}
        self.partitions = [Partition(None, 0, 0.0)] * PARTITIONS
        self.rows: dict[Key, Kept] = {}
        self.down = False
        self.failures = 0  # loads that fail
        self.held = False  # commits are not carried out
        self.loading = threading.Event()
        self.loading.set()
        self.storages: list[FakeStorage] = []

    def open(self, settings: GlobalSettings) -> FakeStorage:
        storage = FakeStorage(self)
        self.storages.append(storage)
        return storage

    def release_commits(self) -> None:
        """Carry out the commits that were held."""
        self.held = False
        for each in self.storages:
            each.flush()

    def carry_out(self, ask: Ask, cut: bool) -> View | None:
        with self.lock:
            if self.down or cut:
                raise DataError("the database is down")
            if isinstance(ask, Leave):
                self.members.pop(ask.me, None)
            else:
                self._beat(ask)
            return View(dict(self.members), list(self.partitions))

    def _beat(self, ask: Beat) -> None:
        row = self.members.get(ask.me)
        if row is not None and row.beat >= ask.beat:
            return
        if ask.join is not None:
            self.members[ask.me] = ask.join
        elif row is None:
            return
        else:
            draining = row.draining or ask.draining
            self.members[ask.me] = row._replace(beat=ask.beat, draining=draining)
        for name, beat in ask.dead:
            found = self.members.get(name)
            if found is not None and found.beat == beat:
                del self.members[name]
        cache_lease = self.members[ask.me].cache_lease
        for number, fence in ask.release:
            found_row = self.partitions[number]
            if found_row[:2] == (ask.me, fence):
                self.partitions[number] = Partition(None, fence + 1, found_row.quiet)
        for number, fence in ask.claim:
            owner, present, quiet = self.partitions[number]
            if present == fence and (owner == ask.me or owner not in self.members):
                self.partitions[number] = Partition(ask.me, fence + 1, max(quiet, cache_lease))
        for number, fence in ask.quieted:
            if self.partitions[number][:2] == (ask.me, fence):
                self.partitions[number] = Partition(ask.me, fence, cache_lease)

    def apply(self, me: bytes, fences: Mapping[int, int], changes: list[Change]) -> list[Outcome]:
        with self.lock:
            for each in changes:
                number = partition_of(each.key)
                if self.partitions[number][:2] != (me, fences.get(number)):
                    raise DataError(f"partition {number} has another fence")
            for each in changes:
                self._apply(each)
        return [Outcome.DONE] * len(changes)

    def _apply(self, change: Change) -> None:
        key, stored = change.key, change.stored
        if change.kind in (ChangeKind.BIND, ChangeKind.REPLACE):
            assert stored is not None
            self.rows[key] = Kept(key, stored.token, stored, change.deadline)
        elif change.kind is ChangeKind.REMOVE:
            del self.rows[key]
        else:
            self.rows[key] = self.rows[key]._replace(deadline=change.deadline)


class Engine(MemoryEngine):
    """An engine in memory, which never has to load anything."""

    def begin(self, wake: Callable[[], None]) -> None:
        """Nothing wakes Global."""

    def load(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        raise AssertionError

    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        return []


class FakeStorage:
    """What one member has of the database."""

    def __init__(self, database: FakeDatabase) -> None:
        self.database = database
        self.engine = Engine(journal=True)
        self.fences: dict[int, int] = {}
        self.closed = False
        self.cut = False  # nothing is answered to this one
        self._me = b""
        self._wake: Callable[[], object] = int
        self._taken: deque[tuple[int, list[Change]]] = deque()
        self._ended: deque[tuple[int, list[Outcome]]] = deque()
        self._error: DataError | None = None

    @property
    def news(self) -> bool:
        return bool(self._ended or self._error)

    @property
    def cluster(self) -> bytes:
        return self.database.cluster

    def begin(self, me: bytes, wake: Callable[[], object]) -> None:
        self._me, self._wake = me, wake

    def carry_out(self, ask: Ask) -> View | None:
        return self.database.carry_out(ask, self.cut)

    def load(self, numbers: Collection[int]) -> Iterator[Collection[Kept]]:
        while not self.database.loading.wait(0.02):
            if self.closed:
                return
        if self.database.failures:
            self.database.failures -= 1
            raise DataError("the database has stumbled")
        with self.database.lock:
            for number in numbers:
                if self.database.partitions[number].fence != self.fences[number]:
                    raise DataError("the database does not show what was claimed")
            rows = [row for row in self.database.rows.values() if partition_of(row.key) in numbers]
        for start in range(0, len(rows), PAGE):
            yield rows[start : start + PAGE]

    def bulk(self, inner: Bulk) -> Bulk:
        return inner

    def own(self, fences: Mapping[int, int]) -> None:
        self.fences.update(fences)

    def bind(self, rows: Collection[Kept]) -> list[Deadline]:
        deadlines = []
        for key, token, stored, deadline in rows:
            assert stored is not None
            self.engine.bind(key, stored)
            if deadline != NO_DEADLINE:
                deadlines.append((key, token, deadline))
        return deadlines

    def forget(self, numbers: Collection[int]) -> Iterator[None]:
        for key in self.engine.scan("", "", len(self.engine)):
            if partition_of(key) in numbers:
                bound = self.engine.read(key)
                assert isinstance(bound, Stored)
                self.engine.remove(key, bound.token)
            yield

    def disown(self, numbers: Collection[int]) -> None:
        for number in numbers:
            del self.fences[number]

    def commit(self, number: int, changes: list[Change]) -> None:
        self._taken.append((number, changes))
        if not self.database.held:
            self.flush()

    def flush(self) -> None:
        while self._taken:
            number, changes = self._taken.popleft()
            try:
                outcomes = self.database.apply(self._me, self.fences, changes)
            except DataError as error:
                self._error = error
            else:
                self._ended.append((number, outcomes))
        self._wake()

    def committed(self) -> list[tuple[int, list[Outcome]]]:
        if self._error is not None:
            raise self._error
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def reset(self) -> None:
        self.engine = Engine(journal=True)
        self.fences.clear()
        self._taken.clear()
        self._ended.clear()
        self._error = None

    def figures(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        self.closed = True

    def forked(self) -> None:
        """Nothing has to be left to the parent."""
