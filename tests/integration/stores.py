"""Members of a cluster without their Globals: each has a Store, and is driven by a test."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from types import TracebackType

from dstore.core.cluster.messages import Beat, Fenced, Member, View
from dstore.core.engine import NO_DEADLINE, Bulk, Change, ChangeKind, Loaded, Outcome, Unloaded
from dstore.protocol import content
from dstore.protocol.messages import Key, Large, Stored
from dstore.protocol.partitions import PARTITIONS, partition_of
from dstore.server.postgres import open_store
from dstore.shm.bulk import PrivateBulk

PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""
ALL = range(PARTITIONS)


class Owner:
    """A member that owns partitions, once it has claimed them."""

    def __init__(
        self, url: str, *, memory_limit: int = 64 << 20, patience: float = 3.0, lease: float = 1.0
    ) -> None:
        self.me = secrets.token_bytes(16)
        self.woken = threading.Event()
        self.store = open_store(url, memory_limit=memory_limit, patience=patience)
        self.store.begin(self.me, self.woken.set)
        self.bulk: Bulk = self.store.bulk(PrivateBulk())
        self.deadlines: list[tuple[Key, bytes, float]] = []
        self._lease = lease
        self._beats = itertools.count(1)
        self._numbers = itertools.count(1)
        self._ended: dict[int, list[Outcome]] = {}
        self._loaded: deque[tuple[int, list[Loaded]]] = deque()

    def __enter__(self) -> Owner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bulk.close()
        self.store.close()

    # ---- the directory ----------------------------------------------------------------------

    def ask(self, **steps: object) -> View:
        """Carry out a beat, and return what it has shown."""
        view = self.store.carry_out(Beat(self.me, next(self._beats), **steps))  # type: ignore[arg-type]
        assert view is not None
        return view

    def join(self, *dead: Owner) -> View:
        """Become a member, and bury others."""
        row = Member("tcp://127.0.0.1:1", 0, self._lease, self._lease, False)
        view = self.ask(join=row)
        beats = tuple((each.me, view.members[each.me].beat) for each in dead)
        return self.ask(dead=beats) if dead else view

    def claim(self, numbers: Collection[int] = ALL, *, serve: bool = True) -> None:
        """Claim partitions, and load them."""
        before = self.ask().partitions
        view = self.ask(claim=tuple((number, before[number].fence) for number in numbers))
        owned = {number: view.partitions[number] for number in numbers}
        assert all(row.owner == self.me for row in owned.values())
        self.store.own({number: row.fence for number, row in owned.items()})
        if serve:
            self.load(numbers)

    def load(self, numbers: Collection[int] = ALL) -> None:
        for page in self.store.load(numbers):
            self.deadlines += self.store.bind(page)

    def forget(self, numbers: Collection[int]) -> None:
        """Remove from memory what was bound of partitions."""
        for _ in self.store.forget(numbers):
            pass

    def release(self, numbers: Collection[int]) -> View:
        """Give partitions up by will."""
        fences = self.ask().partitions
        self.store.disown(numbers)
        self.forget(numbers)
        released: tuple[Fenced, ...] = tuple((each, fences[each].fence) for each in numbers)
        return self.ask(release=released)

    def fence(self, key: Key) -> int:
        return self.ask().partitions[partition_of(key)].fence

    # ---- the journal ------------------------------------------------------------------------

    def begin(self, *changes: Change) -> int:
        """Begin to commit a batch. Returns its number."""
        number = next(self._numbers)
        self.store.commit(number, list(changes))
        return number

    def end(self, number: int) -> list[Outcome]:
        """Wait until a batch has ended, and apply it. Returns its outcomes; raises DataError."""
        while number not in self._ended:
            self._ended.update(self.store.committed())
            if number not in self._ended:
                assert self.woken.wait(PATIENCE), f"batch {number} does not end"
                self.woken.clear()
        return self._ended.pop(number)

    def write(self, *changes: Change) -> list[Outcome]:
        """Commit changes, and apply those to the engine that are done."""
        outcomes = self.end(self.begin(*changes))
        for change, outcome in zip(changes, outcomes):
            if not outcome:
                self._apply(change)
        return outcomes

    def _apply(self, change: Change) -> None:
        engine = self.store.engine
        if change.kind is ChangeKind.REMOVE:
            old = engine.read(change.key)
            assert engine.remove(change.key, change.token)
            if isinstance(old, Stored) and isinstance(old.body, Large):
                self.bulk.drop(change.token)
        elif change.kind is ChangeKind.BIND:
            assert change.stored is not None
            engine.bind(change.key, change.stored)
        elif change.kind is ChangeKind.REPLACE:
            assert change.stored is not None
            assert engine.replace(change.key, change.token, change.stored)

    def upload(self, body: bytes, codec: str = "bytes") -> Stored:
        """Bring the bytes of a large value here. Returns the value that a write can bind."""
        token = secrets.token_bytes(16)
        self.bulk.reserve(token, len(body))
        self.bulk.write(token, 0, body)
        self.bulk.seal(token)
        return Stored(token, codec, Large(len(body), content.digest(codec, body)))

    def read_large(self, key: Key, stored: Stored, piece: int = 700_001) -> bytes | None:
        """Read the large value of a key, as FETCH does."""
        parts = []
        for offset in range(0, stored.size, piece):
            part = self.read_part(key, stored, offset, piece)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def read_part(self, key: Key, stored: Stored, offset: int, length: int) -> bytes | None:
        """Read a part of a large value, and load it if it is away."""
        try:
            part = self.bulk.read(stored.token, offset, length)
            return None if part is None else bytes(part)
        except Unloaded as away:
            length = away.length
        number = next(self._numbers)
        self.store.engine.load_part(number, key, stored.token, offset, length)
        loaded = self.loaded(number)
        return loaded if isinstance(loaded, bytes) else None

    def loaded(self, number: int) -> Loaded:
        """Wait until a load of one value has ended, the first one that has. Returns its result."""
        engine = self.store.engine
        engine.begin(self.woken.set)
        while not self._loaded:
            self._loaded.extend(engine.loaded())
            if not self._loaded:
                assert self.woken.wait(PATIENCE), f"load {number} does not end"
                self.woken.clear()
        of, (result,) = self._loaded.popleft()
        assert of == number
        return result

    def read(self, key: Key) -> Stored | None:
        """Read a value, and load its bytes if they are away."""
        engine = self.store.engine
        bound = engine.read(key)
        if bound is None or isinstance(bound, Stored):
            return bound
        engine.begin(self.woken.set)
        number = next(self._numbers)
        engine.load(number, [(key, bound.token)])
        body = self.loaded(number)
        assert isinstance(body, bytes), body
        return Stored(bound.token, bound.codec, body)


def stored(body: bytes = b"v", codec: str = "bytes") -> Stored:
    return Stored(secrets.token_bytes(16), codec, body)


def bind(key: Key, value: Stored | None = None, deadline: float = NO_DEADLINE) -> Change:
    return Change(ChangeKind.BIND, key, stored=value or stored(), deadline=deadline)


def replace(key: Key, token: bytes, value: Stored | None = None) -> Change:
    return Change(ChangeKind.REPLACE, key, token, value or stored())


def remove(key: Key, token: bytes) -> Change:
    return Change(ChangeKind.REMOVE, key, token)


def date(key: Key, token: bytes, deadline: float) -> Change:
    return Change(ChangeKind.DEADLINE, key, token, deadline=deadline)


def wait_until(done: Callable[[], bool], what: str) -> None:
    """Look again and again until something has happened in another process."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if done():
            return
        pause.wait(0.01)
    raise AssertionError(f"{what} does not happen")


@contextlib.contextmanager
def owners(
    url: str, count: int, *, memory_limit: int = 64 << 20, patience: float = 3.0
) -> Iterator[list[Owner]]:
    """Members of one cluster; the first owns all partitions."""
    with contextlib.ExitStack() as stack:
        members = [
            stack.enter_context(Owner(url, memory_limit=memory_limit, patience=patience))
            for _ in range(count)
        ]
        for each in members:
            each.join()
        members[0].claim()
        yield members
