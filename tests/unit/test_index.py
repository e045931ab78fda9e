"""The index of several caches: Ctrl-C, another cache, or a hit, between any two steps.

The steps are the instructions of Python in ``core/local/cache.py``: at any of them a signal handler
may raise, or another thread take its turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import RLock
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest

from dstore.client import lifecycle
from dstore.client.hits import find
from dstore.client.lifecycle import Lifecycle
from dstore.core.local import cache as cache_module
from dstore.core.local.cache import ENTRY_OVERHEAD, INDEX_OVERHEAD, Cache
from dstore.core.local.membership import Entry, Membership, Present
from dstore.core.local.state import LocalState
from dstore.protocol.messages import Found, GetReply, Stored

ROOM = ENTRY_OVERHEAD + INDEX_OVERHEAD + 2
"""Bytes of one entry of a one-letter key and a one-byte value, decoded."""
FAR = float("inf")


class Caches:
    """Two caches with one index, under leases that do not end, and all entries that were there."""

    def __init__(self) -> None:
        self.index: dict[str, Entry] = {}
        self.one, self.two = self._cache(), self._cache()
        for key in "abc":
            put(self.one, key)
        for key in "cd":
            put(self.two, key)
        self.seen = {id(entry): entry for each in (self.one, self.two) for entry in each}
        self.check()

    def _cache(self) -> Cache:
        cache = Cache(3 * ROOM, {"bytes": bytes})
        self._join(cache)
        return cache

    def _join(self, cache: Cache) -> None:
        home = Membership(cache.entries)
        home.lease_end = FAR
        cache.join_index(self.index)
        cache.belong_to(home)

    def check(self) -> None:
        """Check that hits find what is stored, and nothing else."""
        stored = {id(entry) for each in (self.one, self.two) for entry in each.entries.values()}
        self.seen.update((id(entry), entry) for entry in self.index.values())
        for place, entry in self.seen.items():
            assert place in stored or entry.home is None, f"{entry} is still at home"
        nothing = Present(Membership({}))
        for key in self.index:
            found = find(nothing, key, self.index)
            assert found is None or id(found) in stored


def put(cache: Cache, key: str, seq: int = 0) -> None:
    assert cache.insert(key, seq, bytes(16), "bytes", b"v") is not None


def put_many(cache: Cache, *keys: str, seq: int = 1) -> None:
    item = Found(seq, True, Stored(bytes(16), "bytes", b"v"))
    reply = GetReply.of((1, 1, 1), seq, [item] * len(keys))
    cache.insert_many(list(keys), reply, {})


def shrink(cache: Cache) -> None:
    cache.limit = ROOM
    cache.shrink()


CHANGES: dict[str, Callable[[Cache], object]] = {
    "discard": lambda cache: cache.discard("c"),
    "evict": shrink,
    "clear": Cache.clear,
    "renew": Cache.renew,
    "insert": lambda cache: put(cache, "e"),
    "replace": lambda cache: put(cache, "c", seq=1),
    "insert many": lambda cache: put_many(cache, "c", "d", "e"),
}


def between(
    step: int,
    do: Callable[[], object],
    other: Callable[[], object],
    *modules: ModuleType,
) -> bool:
    """Call ``do``, and ``other`` before a step of it. Returns whether it has as many steps.

    The steps are those of the cache, or those of the ``modules``.
    """
    steps = 0
    files = {each.__file__ for each in modules or (cache_module,)}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            steps += 1
            if steps == step:
                other()
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(former)
    return steps >= step


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", CHANGES)
def test_ctrl_c_leaves_no_entry_that_hits_find_and_the_cache_does_not(name: str) -> None:
    change = CHANGES[name]
    for step in range(1, 10_000):
        caches = Caches()
        try:
            if not between(step, lambda: change(caches.one), interrupt):  # noqa: B023
                break
        except KeyboardInterrupt:
            pass
        caches.check()
        for each in (change, Cache.clear):
            each(caches.one)
            caches.check()
        assert {entry.home for entry in caches.seen.values()} <= {None, caches.two.home}
    assert step > 20


@pytest.mark.parametrize("key", ["c", "a"])
def test_what_was_interrupted_drops_the_entry_when_it_is_repeated(
    key: str,
) -> None:
    """A deletion counts as applied when it has been applied to the end."""
    for step in range(1, 10_000):
        caches = Caches()
        entry = caches.one.entries[key]
        try:
            if not between(step, lambda: caches.one.discard(key), interrupt):  # noqa: B023
                break
        except KeyboardInterrupt:
            pass
        caches.one.discard(key)
        assert entry.home is None
        caches.check()
    assert step > 20


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("other", ["discard", "clear", "replace", "insert many"])
def test_two_caches_change_the_index_at_the_same_time(name: str, other: str) -> None:
    for step in range(1, 10_000):
        caches = Caches()

        def turn() -> None:
            caches.check()  # noqa: B023
            CHANGES[other](caches.two)  # noqa: B023
            caches.check()  # noqa: B023

        if not between(step, lambda: CHANGES[name](caches.one), turn):  # noqa: B023
            break
        caches.check()
    assert step > 20


def test_an_entry_that_is_stored_while_another_leaves_the_index_keeps_its_home() -> None:
    """It may lose its place there; a look at all caches puts it back."""
    lost = 0
    for step in range(1, 10_000):
        caches = Caches()
        del caches.index["c"]
        caches.index["c"] = caches.one.entries["c"]
        caches.two.discard("c")

        def store() -> None:
            put(caches.two, "c", seq=2)  # noqa: B023

        if not between(step, lambda: caches.one.discard("c"), store):  # noqa: B023
            break
        entry = caches.two.entries["c"]
        assert entry.home is caches.two.home
        lost += "c" not in caches.index
        node = a_node(caches)
        assert (node._find("c"), caches.index["c"]) == (entry, entry)
    assert lost


def a_node(caches: Caches) -> Any:
    """Return a Node of which only its Locals are there."""
    node: Any = Lifecycle.__new__(Lifecycle)
    homes: list[Any] = [cache.home for cache in (caches.one, caches.two)]
    node._locals = {
        number: SimpleNamespace(state=Present(home)) for number, home in enumerate(homes)
    }
    node._index, node._state, node._hits = caches.index, lifecycle._absent(), 0
    return node


def test_a_look_at_all_caches_puts_back_nothing_that_is_dropped_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caches = Caches()
    node = a_node(caches)

    def found_and_dropped(state: Present, name: str) -> Entry | None:
        entry = find(state, name)
        caches.one.discard(name)
        return entry

    monkeypatch.setattr(lifecycle, "find", found_and_dropped)
    entry = caches.one.entries["a"]
    assert node._find("a") is entry  # it was there during the call
    assert "a" not in caches.index
    caches.check()


class ChildLocal:
    """The Local of a forked child, which takes over what the parent had, or does not."""

    takes_over = False

    def __init__(self, *_: object) -> None:
        self.state = lifecycle._absent()

    def join_index(self, index: dict[str, Entry]) -> None:
        self.state.join_index(index)

    def start(self, parent: LocalState) -> None:
        if self.takes_over:
            self.state.bound(1 << 20, None)
            self.state.cache.adopt(parent.membership.entries, {})
            self.state.membership = Membership(parent.membership.entries)
            self.state.membership.lease_end = FAR
            self.state.cache.belong_to(self.state.membership)


@pytest.mark.parametrize("takes_over", [False, True])
def test_what_a_child_has_inherited_and_does_not_take_over_is_no_hit(
    takes_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of the parent may have ended since, and its Global, too."""
    caches = Caches()
    parent = lifecycle._absent()
    parent.membership = caches.one.home  # type: ignore[assignment]
    node = a_node(caches)
    node._members, node._cluster = None, b""
    node._locals, node._closed, node._birth, node._place = {}, False, RLock(), None
    node._settings = SimpleNamespace(at=str, on_deletion=None, label="child")
    node.address = node._home = "here"
    node._parents, node._inherited = {"here": parent}, {"here": lifecycle._inherited(parent)}
    monkeypatch.setattr(lifecycle, "Local", ChildLocal)
    monkeypatch.setattr(ChildLocal, "takes_over", takes_over)
    assert node._hit("a") is not None
    node._open("here")
    node._dropped.detach()
    assert (node._hit("a") is not None) is takes_over
    assert ("a" in node._index) is takes_over
    assert node._hit("d") is not None
    assert (node._parents, node._inherited) == ({}, {})


def test_a_child_has_no_index_of_a_parent_that_was_becoming_one_of_several() -> None:
    """What the parent has under a lease of its own is none of the child's."""
    caches = Caches()
    node = a_node(caches)
    assert node._hit("a") is not None
    node._locals, node._parents, node._inherited = {}, {}, {}
    node._members, node._closed, node._home, node._cluster = None, False, "here", b""
    node._commands = SimpleNamespace(hits=0, misses=0)
    node._forked()
    assert node._hit("a") is None


def test_entries_of_a_cache_that_another_one_takes_over_have_its_home() -> None:
    """A forked child goes on with what its parent has had, and has the index of it, too."""
    caches = Caches()
    former, child = caches.one, Cache(2 * ROOM)
    child.join_index(caches.index)
    for entry in former:
        entry.visited = 0
    child.adopt(former.entries, {})
    dropped = next(iter(caches.seen.values()))
    assert (dropped.key, dropped.home) == ("a", None)  # beyond the limit
    home = Membership(former.entries)
    child.belong_to(home)
    assert {entry.home for entry in child} == {home}
    child.clear()
    assert set(caches.index) == {"d"}
    caches.check()
