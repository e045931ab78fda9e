"""A host of the world: its page, with a host cache, and the processes that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dstore.core.local.cache import MappedBody
from dstore.core.local.membership import lease_word, private_lease
from dstore.core.local.shared import Put, Record
from dstore.core.local.vector import Vector
from dstore.protocol.messages import Found, Key, Stored
from tests.unit.core.world import LEASE, Member, World


class Words:
    """Words that call a function when a hit reads one of them."""

    def __init__(self, words: memoryview, read: Callable[[], None]) -> None:
        self._words = words
        self._read = read

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, bucket: int) -> int:
        word: int = self._words[bucket]
        self._read()
        return word


class HostPage:
    """A page in memory: what Global writes, and what processes read. Time is that of the world.

    ``silent``: its owner has stopped and changes nothing. ``found`` is called when the host cache
    has been looked at.
    """

    capacity = 1 << 30
    lease = LEASE
    value_limit = 1000
    large_from = 1 << 10

    def __init__(self, world: World, session: int, buckets: int = 1 << 12) -> None:
        self.world = world
        self.epoch, self.session = world.epoch, session
        self.cluster = world.state.cluster
        self.vector = Vector(b"the key of hash.", buckets)
        self.lease_word = private_lease()
        self.table: dict[Key, Record] = {}
        self.silent = False
        self.full = False
        self.found: Callable[[], None] = lambda: None

    # what the owner does

    def note(self, key: Key, seq: int) -> None:
        if not self.silent:
            self.vector.note(key, seq)

    def renew(self, end: float) -> None:
        if not self.silent:
            self.lease_word[0] = lease_word(end)

    def void(self) -> None:
        if not self.silent:
            self.lease_word[0] = 0

    # what a process does

    def now(self) -> float:
        return self.world.now

    def used(self) -> int:
        return self.capacity

    def find(self, key: Key, hashed: int) -> Record | None:
        assert hashed == self.vector.hashed(key)
        record = self.table.get(key)
        self.found()
        return record

    def put(self, value: Put) -> bool:
        key, hashed, seq, token, codec, body = value
        assert hashed == self.vector.hashed(key)
        if self.full:
            return False
        if key not in self.table or self.table[key].seq <= seq:
            self.table[key] = Record(seq, token, codec, body)
        return True

    def put_many(self, values: Iterable[Put]) -> int:
        return sum(map(self.put, values))

    def slow(self, read: Callable[[], None]) -> None:
        """Have a function called when a word is read."""
        self.vector.words = Words(self.vector.words, read)  # type: ignore[assignment]

    # what a test does

    def lapse(self) -> None:
        """The owner stops, and the lease ends."""
        self.silent = True
        self.world.advance(2 * LEASE)


def open_page(world: World) -> HostPage:
    """Global begins a session of its host, with a page that the processes find from now on."""
    page = HostPage(world, world.state.open_host(world.now, "host"))
    world.state.share(page, world.now)
    world.page = page
    return page


def process(world: World, name: str, **settings: Any) -> Member:
    """A process that looks for a page when it starts."""
    member = world.member(name, **settings, looking=True)
    if world.page is not None:
        member.state.attach(world.page, world.now)
    return member


def host(world: World, *names: str, **settings: Any) -> tuple[HostPage, list[Member]]:
    """Processes that share a page."""
    page = open_page(world)
    members = [process(world, name, **settings) for name in names]
    assert all(member.state.page is page for member in members)
    return page, members


def kinds(world: World) -> dict[str, int]:
    """How many sessions Global has, by kind; its own one is a membership."""
    counts: dict[str, int] = {}
    for session in world.state._sessions:
        name = session.kind.name.lower()
        counts[name] = counts.get(name, 0) + 1
    return counts


VALUE = (bytes(16), "bytes", b"old")


def sent(member: Member) -> list[Any]:
    """What it says now on its control channel. Nothing is delivered."""
    member.tick()
    if member.state.wake_at <= member.world.now:
        member.tick()
    messages = list(member.outgoing)
    member.outgoing.clear()
    return messages


def detached(world: World) -> tuple[HostPage, Member]:
    """A process whose page has ended, as it has noticed."""
    page, (a,) = host(world, "a")
    world.engine_holds("k")
    a.get("k")
    page.void()
    page.silent = True
    world.page = None
    a.begin_get("k")
    a.tick()
    return page, a


def parent_with_entries(world: World, **settings: Any) -> tuple[HostPage, Member]:
    page, (a,) = host(world, "a", **settings)
    for key in ("k", "l", "m"):
        a.state.cache.insert(key, 0, *VALUE, page.vector.bucket(key))
    return page, a


def stored(page: HostPage, key: str, seq: int = 0) -> None:
    """Another process puts a value into the host cache."""
    page.table[key] = Record(seq, *VALUE)


def large(world: World, shared: bool = True) -> tuple[Found, MappedBody]:
    return Found(3, True, Stored(world.random16(), "bytes", b"")), MappedBody(
        memoryview(bytes(2000)), shared
    )
