"""One hit against one writer, in all orders of their steps.

The reader is the hit of an entry, the read of the host cache, or the look-up of an operation, as
they are, and each thing that they read is a step. The writer plays one script: what the owner of
the membership writes, and what Global does with the key meanwhile. Whatever the order, a value that
is returned was bound at some moment of the call. Variants of reader and writer without one of the
rules show that the orders are enough to find the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dstore.client import hits, host_reader
from dstore.core.local.membership import Entry, PureEntry, PureMembership
from dstore.core.local.shared import Record
from dstore.core.local.state import LocalState
from dstore.core.local.vector import Vector
from dstore.protocol.messages import Stored
from tests.simulation.stepping import Stepped, Steps

NO_WORDS: Any = None

KEY, OTHER = "k", "l"
LEASE = 10
"""Nanoseconds. The clock stands still but for the steps of a writer."""
HASH_KEY = bytes(16)
Between = Callable[[], None]


class Page:
    """A page with one word and its host cache, which has the old value of the key."""

    epoch, lease, value_limit, large_from = 1, float(LEASE), 100, 100
    capacity = 0

    def __init__(self, session: int, lease: int) -> None:
        self.session = session
        self.words = memoryview(bytearray(8)).cast("Q")
        self.lease_word = memoryview(bytearray(8)).cast("Q")
        self.lease_word[0] = lease
        self.records: dict[str, Record] = {}

    def put(self, value: str, seq: int) -> None:
        self.records[KEY] = Record(seq, bytes(16), "bytes", value.encode())


class World:
    """A process, the page of its host, and the key at Global. ``bound`` is its value there.

    ``during`` has all values that the key has had since the call began; None stands for none. The
    process has an index, too, as if it had several Locals: nothing leaves it but for an entry that
    takes its place. If the membership is ``private`` no hit looks at words.
    """

    def __init__(self, private: bool = False) -> None:
        self.clock = 0
        self.page = Page(1, LEASE)
        self.page.put("old", 0)
        self.private = private
        self.bound: str | None = "old"
        self.during: set[str | None] = set()
        self.index: dict[str, Any] = {}
        self.present = SimpleNamespace(membership=self.membership({}))
        self.store("old", 0)

    def membership(self, entries: dict[str, Entry]) -> PureMembership:
        words = NO_WORDS if self.private else self.page.words
        return PureMembership(entries, words, self.page.lease_word)

    def store(self, value: str, seq: int) -> None:
        membership = self.present.membership
        entry = _entry(value, seq)
        entry.home = membership
        membership.entries[KEY] = self.index[KEY] = entry

    # ---- what a writer does ---------------------------------------------------------------

    def write_word(self) -> None:
        self.page.words[0] += 1

    def drop(self) -> None:
        entry = self.present.membership.entries.get(KEY)
        if entry is not None:
            entry.home = None
            del self.present.membership.entries[KEY]

    def drop_and_keep_the_home(self) -> None:
        self.present.membership.entries.clear()

    def lapse(self) -> None:
        self.clock += LEASE

    def renew(self) -> None:
        self.page.lease_word[0] = self.clock + LEASE

    def void(self) -> None:
        self.page.lease_word[0] = 0

    def delete(self) -> None:
        self._bind(None)

    def bind(self) -> None:
        self._bind("new")

    def _bind(self, value: str | None) -> None:
        self.bound = value
        self.during.add(value)

    def fill(self) -> None:
        """Another thread stores the present value, in both caches."""
        if self.bound is not None:
            seq = self.page.words[0]
            self.page.put(self.bound, seq)
            self.drop()
            self.store(self.bound, seq)

    def another_page(self) -> None:
        self.page = Page(2, self.clock + LEASE)

    def attach(self) -> None:
        self.drop()
        self.present.membership = self.membership({})

    def attach_with_old_entries(self) -> None:
        entries = self.present.membership.entries
        self.present.membership = self.membership(entries)
        for entry in entries.values():
            entry.home = self.present.membership


def _entry(value: str, seq: int) -> Any:
    return PureEntry(KEY, Stored(bytes(16), "bytes", value.encode()), seq, 1, None, 0)


SCRIPTS = {
    "invalidated": ("write_word", "delete"),
    "invalidated and bound again": ("write_word", "delete", "bind", "fill"),
    "replaced twice": ("write_word", "bind+fill", "write_word", "delete"),
    "lapsed, deleted, told by a SYNC": ("lapse", "delete", "write_word", "renew"),
    "lapsed, told by a SYNC, filled": ("lapse+delete", "write_word", "renew", "bind+fill"),
    "renewed, then invalidated": ("renew", "write_word", "delete", "lapse", "renew"),
    "voided": ("void", "delete", "bind"),
    "another page": ("void+delete", "another_page", "attach", "bind", "fill"),
    "another page after a lapse": ("lapse+delete", "another_page", "attach", "bind", "fill"),
}
"""What a writer does, by name; in each script no rule of the owner or of Global is broken. Steps
that are joined happen together.
"""
PRIVATE_SCRIPTS = {
    name: tuple(each.replace("write_word", "drop") for each in script)
    for name, script in SCRIPTS.items()
}
"""The same where invalidations are applied to the entries themselves."""
BROKEN_PRIVATE_SCRIPTS = {
    "acknowledged before it is dropped": ("delete", "drop"),
    "dropped, and still at home": ("drop_and_keep_the_home", "delete"),
    "dropped after the lease is renewed": ("lapse", "delete", "renew", "drop"),
}
BROKEN_SCRIPTS = {
    "engine changed before the word": ("delete", "write_word"),
    "lease renewed before the word": ("lapse", "delete", "renew", "write_word"),
    "session ended without a void page": ("delete", "another_page", "attach"),
    "entries kept for another page": ("void+delete", "another_page", "attach_with_old_entries"),
    "page used for another session": ("lapse", "delete", "renew"),
}


# ---- readers ------------------------------------------------------------------------------------

Reader = Callable[[World, Between], "str | None"]


def entry_found(world: World, between: Between) -> str | None:
    return _text(hits.pure_find(cast(Any, Stepped(world.present, Steps(between))), KEY))


class Node(hits.PureHits):
    """A Node of which only the hit is there."""

    def __init__(self, state: Any, index: Any = None) -> None:
        self._state, self._index, self._hits = state, index, 0

    def _get_missed(self, key: str, default: Any) -> Any:
        return None

    def _opened(self, entry: Entry) -> Any:
        return entry


def entry_of_node(world: World, between: Between) -> str | None:
    return _text(Node(Stepped(world.present, Steps(between))).get(KEY))


class Index:
    """The index of a world: to look there is a step, and so is a look at the home of an entry."""

    def __init__(self, world: World, steps: Steps) -> None:
        self._entries, self._steps = world.index, steps

    def __getitem__(self, key: str) -> Any:
        self._steps.read(lambda: None)
        return Indexed(self._entries[key], self._steps)

    def get(self, key: str) -> Any:
        return self[key]


class Indexed:
    """An entry of an index. Nothing of it changes but its home."""

    def __init__(self, entry: Entry, steps: Steps) -> None:
        self._entry, self._steps = entry, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)

    @property
    def home(self) -> Any:
        return self._steps.read(lambda: self._entry.home)


def entry_found_in_index(world: World, between: Between) -> str | None:
    index: Any = Index(world, Steps(between))
    return _text(hits.pure_find(cast(Any, None), KEY, index))


def entry_in_index_of_node(world: World, between: Between) -> str | None:
    return _text(Node(None, Index(world, Steps(between))).get(KEY))


def value_of_host(world: World, between: Between) -> str | None:
    steps, page, membership = Steps(between), world.page, world.present.membership
    if membership.words is not page.words:
        return None
    find = steps.wrap(lambda key, hashed: page.records.get(key))
    reader = host_reader.PureHostReader(HASH_KEY, cast(Any, SimpleNamespace(find=find)))
    found = reader.read(steps.wrap(membership), KEY)
    return None if found is None else found[1].body.decode()


def values_of_host(world: World, between: Between) -> str | None:
    """The same with the call for many keys, which has no entry to find."""
    steps, page, membership = Steps(between), world.page, world.present.membership
    if membership.words is not page.words:
        return None
    find = steps.wrap(lambda key, hashed: page.records.get(key))
    reader = host_reader.PureHostReader(HASH_KEY, cast(Any, SimpleNamespace(find=find)))
    found: dict[str, Any] = {}
    seen = memoryview(bytearray(1 << 16)).cast("H")
    bare = PureMembership({}, page.words, page.lease_word)
    reader.collect(steps.wrap(bare), [KEY, OTHER], found, seen)
    return found[KEY].decode() if KEY in found else None


class CorePage:
    """A page for the look-up of an operation; each thing that is read of it is a step."""

    def __init__(self, world: World, between: Between) -> None:
        page = self._page = world.page
        self.epoch, self.session, self.lease = page.epoch, page.session, page.lease
        self.cluster = b""
        self.value_limit, self.large_from, self.capacity = 100, 100, 0
        self._world, self._between = world, between
        self._vector = Vector(HASH_KEY, 1, page.words)

    @property
    def vector(self) -> Vector:
        self._between()
        return self._vector

    @property
    def lease_word(self) -> memoryview:
        return self._page.lease_word

    def now(self) -> float:
        self._between()
        return self._world.clock / 1e9

    def used(self) -> int:
        return 0

    def find(self, key: str, hashed: int) -> Record | None:
        self._between()
        return self._page.records.get(key) if self.records else None

    def put(self, value: Any) -> bool:
        return False

    def put_many(self, values: Any) -> int:
        return 0

    records = True


def operation(world: World, between: Between) -> str | None:
    return _looked_up(world, between, records=False)


def operation_on_host(world: World, between: Between) -> str | None:
    return _looked_up(world, between, records=True)


def _looked_up(world: World, between: Between, records: bool) -> str | None:
    draws = count(1)
    began = False
    page = CorePage(world, lambda: between() if began else None)
    page.records = records
    state = LocalState(
        random16=lambda: next(draws).to_bytes(16, "big"),
        label="reader",
        cache_bytes=1 << 20,
        looking=True,
    )
    state.attach(cast(Any, page), 0.0)
    if not records:
        state.fill_small(state.membership, KEY, 0, bytes(16), "bytes", b"old")
    began = True
    between()  # the lease is noted, and the entry found, in one step
    return _text(state.hit(KEY, 0.0))


def _text(entry: Any) -> str | None:
    return None if entry is None else bytes(entry.value.body).decode()


READERS_OF_ENTRIES: list[Reader] = [
    entry_found,
    entry_of_node,
    entry_found_in_index,
    entry_in_index_of_node,
]
READERS: list[Reader] = [
    *READERS_OF_ENTRIES,
    value_of_host,
    values_of_host,
    operation,
    operation_on_host,
]


def in_own_order(
    *order: str, present_lease: bool = False, twice: bool = False, strict: bool = True
) -> Reader:
    """Return a reader of entries that does these steps, in this order."""

    def read(world: World, between: Between) -> str | None:
        state: Any = Stepped(world.present, Steps(between))
        membership = state.membership
        entry: Any = None
        noted, word, now = 1 << 63, 0, 0
        for each in order:
            taken = state.membership if twice else membership
            if each == "lease":
                noted = taken.lease[0]
            elif each == "entry":
                entry = membership.entries.get(KEY)
            elif each == "word" and entry is not None:
                word = taken.words[0]
            elif each == "clock":
                between()
                now = world.clock
        if present_lease:
            noted = membership.lease[0]
        if entry is None or now >= noted or (word > entry.seq if strict else word > entry.seq + 1):
            return None
        return _text(entry)

    return read


def in_index_in_own_order(*order: str) -> Reader:
    """Return a reader of the index that does these steps, in this order."""

    def read(world: World, between: Between) -> str | None:
        entry = Index(world, Steps(between))[KEY]
        noted, now, is_there = 1 << 63, 0, True
        membership = entry.home
        if membership is None:
            return None
        for each in order:
            if each == "lease":
                noted = membership.lease[0]
            elif each == "home":
                is_there = is_there and entry.home is membership
            elif each == "clock":
                between()
                now = world.clock
        return _text(entry) if is_there and now < noted else None

    return read


RIGHT_IN_INDEX = in_index_in_own_order("lease", "home", "clock")
BROKEN_READERS_OF_INDEX = {
    "no second look": in_index_in_own_order("lease", "clock"),
    "second look before the lease": in_index_in_own_order("home", "lease", "clock"),
    "no clock": in_index_in_own_order("lease", "home"),
    "no lease": in_index_in_own_order("home", "clock"),
}
RIGHT = in_own_order("lease", "entry", "word", "clock")
BROKEN_READERS = {
    "no word": in_own_order("lease", "entry", "clock"),
    "a word that may be one above": in_own_order("lease", "entry", "word", "clock", strict=False),
    "no lease": in_own_order("entry", "word", "clock"),
    "no clock": in_own_order("lease", "entry", "word"),
    "word before the lease": in_own_order("entry", "word", "lease", "clock"),
    "the present lease": in_own_order("lease", "entry", "word", "clock", present_lease=True),
    "lease and word of another membership": in_own_order(
        "entry", "lease", "word", "clock", twice=True
    ),
}


# ---- all orders ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock that hits read: that of the world that is played."""
    clock = SimpleNamespace(now_ns=lambda: 0)
    monkeypatch.setattr(hits, "clock", clock)
    monkeypatch.setattr(host_reader, "clock", clock)
    return clock


def play(
    clock: SimpleNamespace,
    reader: Reader,
    script: tuple[str, ...],
    places: tuple[int, ...],
    private: bool = False,
) -> tuple[int, str | None, set[str | None]]:
    """Run a reader, with each step of the writer before that step of the reader.

    Returns the steps of the reader, what it has found, and what was bound during the call.
    """
    world = World(private)
    left = list(zip(places, script))
    steps = 0

    def between() -> None:
        nonlocal steps
        while left and left[0][0] <= steps:
            for name in left.pop(0)[1].split("+"):
                getattr(world, name)()
        if not steps:
            world.during = {world.bound}
        steps += 1

    def now_ns() -> int:
        between()
        return world.clock

    clock.now_ns = now_ns
    found = reader(world, between)
    return steps, found, world.during


def violations(
    clock: SimpleNamespace, reader: Reader, script: tuple[str, ...], private: bool = False
) -> Iterator[tuple[int, ...]]:
    """The orders in which a reader returns a value that was not bound during its call."""
    steps, _, _ = play(clock, reader, script, (1 << 30,) * len(script), private)
    assert steps >= 3
    for places in combinations_with_replacement(range(steps + 1), len(script)):
        _, found, during = play(clock, reader, script, places, private)
        if found is not None and found not in during:
            yield places


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("reader", [*READERS, RIGHT], ids=lambda each: each.__name__)
def test_a_hit_returns_what_was_bound_during_the_call(
    clock: SimpleNamespace, reader: Reader, name: str
) -> None:
    assert list(violations(clock, reader, SCRIPTS[name])) == []


@pytest.mark.parametrize("name", PRIVATE_SCRIPTS)
@pytest.mark.parametrize(
    "reader", [*READERS_OF_ENTRIES, RIGHT_IN_INDEX], ids=lambda each: each.__name__
)
def test_a_private_hit_returns_what_was_bound_during_the_call(
    clock: SimpleNamespace, reader: Reader, name: str
) -> None:
    assert list(violations(clock, reader, PRIVATE_SCRIPTS[name], private=True)) == []


@pytest.mark.parametrize("reader", READERS, ids=lambda each: each.__name__)
def test_a_hit_without_a_writer_finds_the_value(clock: SimpleNamespace, reader: Reader) -> None:
    assert play(clock, reader, (), ())[1] == "old"


@pytest.mark.parametrize("name", BROKEN_READERS)
def test_each_broken_reader_returns_an_outdated_value(clock: SimpleNamespace, name: str) -> None:
    reader = BROKEN_READERS[name]
    assert any(True for script in SCRIPTS.values() for _ in violations(clock, reader, script))


@pytest.mark.parametrize("name", BROKEN_SCRIPTS)
def test_each_broken_writer_makes_a_hit_outdated(clock: SimpleNamespace, name: str) -> None:
    script = BROKEN_SCRIPTS[name]
    found = [each.__name__ for each in READERS if any(violations(clock, each, script))]
    assert "entry_found" in found


@pytest.mark.parametrize("name", BROKEN_READERS_OF_INDEX)
def test_each_broken_reader_of_the_index_returns_an_outdated_value(
    clock: SimpleNamespace, name: str
) -> None:
    reader = BROKEN_READERS_OF_INDEX[name]
    assert any(any(violations(clock, reader, each, True)) for each in PRIVATE_SCRIPTS.values())


@pytest.mark.parametrize("name", BROKEN_PRIVATE_SCRIPTS)
def test_each_broken_writer_makes_a_hit_in_the_index_outdated(
    clock: SimpleNamespace, name: str
) -> None:
    script = BROKEN_PRIVATE_SCRIPTS[name]
    for reader in (entry_found_in_index, entry_in_index_of_node):
        assert any(violations(clock, reader, script, private=True))
