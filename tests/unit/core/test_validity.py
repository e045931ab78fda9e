"""The rules of validity by number, one test each: who may use an entry, and until when.

A hit takes no lock, so a test puts itself between two of its steps: into the look-up, the word, or
the clock. The tests of the hit use its pure classes, whatever is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dstore.client import hits
from dstore.core.local import membership as memberships
from dstore.core.local.vector import Vector
from dstore.protocol.messages import Broadcast, Found, Refusal, Refused, Stored, Synced
from dstore.runtime import clock
from tests.unit.core.sharing import host
from tests.unit.core.world import Call, Member, World, body

OLD = Stored(bytes(16), "bytes", b"old")


class Holding(hits.PureHits):
    """What a Node is to the hit."""

    def __init__(self, membership: memberships.PureMembership) -> None:
        self._state = memberships.PurePresent(membership)
        self._hits = 0

    def _get_named(self, key: Any, default: Any) -> Any:
        raise AssertionError("the keys of these tests are texts")

    def _get_missed(self, key: str, default: Any) -> Any:
        return default

    def _opened(self, entry: Any) -> Any:
        raise AssertionError("the values of these tests are kept as they are")


Find = Callable[[Holding], bool]


def by_get(node: Holding) -> bool:
    return node.get("k", None) is not None


def by_find(node: Holding) -> bool:
    return hits.pure_find(node._state, "k") is not None


@pytest.fixture(params=[by_get, by_find])
def found(request: pytest.FixtureRequest) -> Find:
    """Either way of finding an entry: both have the same steps."""
    return request.param  # type: ignore[no-any-return]


class Words:
    """A vector of one word. ``read`` is called when a hit reads it."""

    def __init__(self, word: int = 0, read: Callable[[], None] = lambda: None) -> None:
        self.word = word
        self._read = read

    def __getitem__(self, bucket: int) -> int:
        self._read()
        return self.word


def held(words: Words | None = None, lease_end: float = 100.0) -> memberships.PureMembership:
    """A membership that holds one entry, of a reply with seq 5."""
    entry = memberships.PureEntry("k", b"old", 5, 100)
    membership = memberships.PureMembership({"k": entry}, words)  # type: ignore[arg-type]
    membership.lease_end = lease_end
    return membership


def reads(monkeypatch: pytest.MonkeyPatch, now: Callable[[], float]) -> None:
    """Let a hit read this time, in seconds, from the clock."""
    monkeypatch.setattr(clock, "now_ns", lambda: round(now() * memberships.NS))


# ---- the hit --------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "valid"), [(4, True), (5, True), (6, False)])
def test_a_hit_compares_the_word_and_an_equal_one_is_not_newer(
    word: int, valid: bool, found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of a replacement gets the number of its own invalidation, and keeps its value."""
    reads(monkeypatch, lambda: 50.0)
    assert found(Holding(held(Words(word)))) is valid


def test_a_hit_ends_with_the_lease(found: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Holding(held())
    now = [99.9]
    reads(monkeypatch, lambda: now[0])
    assert found(node)
    now[0] = 100.0
    assert not found(node)


def test_a_hit_compares_the_clock_with_the_end_it_noted_before_the_look_up(
    found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between look-up and comparison: the lease lapses, the key is deleted, a renewal comes."""
    membership = held()

    def interrupted() -> float:
        membership.entries.clear()
        membership.lease_end = 200.0
        return 150.0

    reads(monkeypatch, interrupted)
    assert not found(Holding(membership))


def test_a_hit_reads_the_clock_after_the_look_up(
    found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between noting the lease and the look-up time goes on, and the key is deleted elsewhere."""
    membership = held()

    class Slow(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            now[0] = 150.0
            return super().get(key, default)

        def __getitem__(self, key: str) -> Any:
            now[0] = 150.0
            return super().__getitem__(key)

    now = [50.0]
    membership.entries = Slow(membership.entries)
    reads(monkeypatch, lambda: now[0])
    assert not found(Holding(membership))


def test_a_hit_notes_the_lease_end_before_the_look_up(
    found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the look-up: lapse, deletion, and a renewal, before the lease end is noted."""
    membership = held(Words(5))

    class Interrupted(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            membership.lease_end = 200.0
            return super().get(key, default)

        def __getitem__(self, key: str) -> Any:
            membership.lease_end = 200.0
            return super().__getitem__(key)

    membership.entries = Interrupted(membership.entries)
    reads(monkeypatch, lambda: 150.0)
    assert not found(Holding(membership))


def test_a_hit_notes_the_lease_end_before_it_reads_the_word(
    found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the word was read: lapse, deletion, and a renewal whose words come first."""

    def interrupted() -> None:
        membership.lease_end = 200.0

    membership = held(Words(5, interrupted))
    reads(monkeypatch, lambda: 150.0)
    assert not found(Holding(membership))


def test_a_hit_reads_the_clock_after_the_word(found: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the word is read, the process stands still until the lease has run out."""

    def interrupted() -> None:
        now[0] = 150.0

    now = [50.0]
    membership = held(Words(5, interrupted))
    reads(monkeypatch, lambda: now[0])
    assert not found(Holding(membership))


@pytest.mark.parametrize("part", ["entries", "lease_end", "words"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_hit_takes_entries_lease_and_word_of_one_membership(
    part: str, first: int, found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two memberships, neither of which may answer: only a hit that mixes them is one.

    The state names one at the first look of the hit, and the other from then on.
    """
    reads(monkeypatch, lambda: 150.0)
    lapsed, dead, empty = held(Words(0), 100.0), held(Words(9), 200.0), held(Words(0), 200.0)
    empty.entries = {}
    pair = (dead if part == "words" else lapsed, empty)
    looks = [pair[first]]

    class Switching(Holding):
        """It is its own state."""

        _state = property(lambda self: self, lambda self, state: None)
        membership = property(lambda self: looks.pop() if looks else pair[1 - first])

    assert not found(Switching(lapsed))
    assert not looks


@pytest.mark.parametrize(("word", "valid"), [(4, True), (5, True), (6, False)])
def test_a_look_up_compares_the_word_and_an_equal_one_is_not_newer(word: int, valid: bool) -> None:
    """Operations look up under the lock, by the same rule."""
    world = World()
    (a,) = world.joined("a")
    state = a.state
    state.fill(state.membership, "k", Found(5, True, OLD))
    words = memoryview(bytearray(8)).cast("Q")
    words[0] = word
    membership = memberships.Membership(state.entries, words)
    membership.lease_end = world.now + 1
    state.membership = membership
    assert (a.hit("k") is not None) is valid


# ---- filling --------------------------------------------------------------------------------


def in_flight() -> tuple[World, Member, Member, Call]:
    """``a`` has asked for a key of ``b``; the reply, read at seq 0, lies in its channel."""
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"old")
    reading = a.begin_get("k")
    reading.send()
    return world, a, b, reading


def test_what_was_invalidated_after_global_read_it_is_dead_on_arrival() -> None:
    _world, a, b, reading = in_flight()
    b.delete("k")
    assert a.state.applied == 1
    reading.answer()
    assert body(reading.result["k"]) == b"old", "its own caller may have it"
    assert "k" not in a.state.entries


def test_the_seq_of_an_entry_is_that_of_the_reply_and_not_what_was_applied_when_it_came() -> None:
    world, a, b, reading = in_flight()
    b.set("other", b"v")
    b.delete("other")
    world.publish()
    world.settle()
    assert a.state.applied == 1
    reading.answer()
    assert a.state.entries["k"].seq == 0
    b.set("l", b"v")
    many = a.begin_get("l", "m")
    many.send()
    many.answer()
    assert a.state.entries["l"].seq == 1


def test_an_invalidation_drops_an_entry_of_a_lower_seq_only() -> None:
    world = World()
    (a,) = world.joined("a")
    membership = a.state.membership
    for key, seq in (("below", 0), ("equal", 1), ("above", 2)):
        a.state.fill(membership, key, Found(seq, True, OLD))
    for key, kept in (("below", False), ("equal", True), ("above", True)):
        membership.applied = 0
        a.state._apply(1, [key])
        assert (key in a.state.entries) is kept


def test_keys_that_share_a_bucket_cost_a_fill_and_no_stale_read() -> None:
    world, a, b, reading = in_flight()
    other = next(key for key in map(str, range(10**6)) if same_bucket(a.state.vector, key, "k"))
    b.set(other, b"v")
    b.delete(other)
    world.publish()
    world.settle()
    reading.answer()
    assert "k" not in a.state.entries
    assert a.get("k") == b"old"
    assert a.hit("k") == b"old", "the next reply is newer than the word"


def test_a_reply_with_the_number_of_the_word_is_stored() -> None:
    """That of a replacement has it: the value came with the invalidation."""
    world = World()
    (a,) = world.joined("a")
    a.state._apply(1, ["k", "other"])
    assert a.state.fill(a.state.membership, "k", Found(0, True, OLD)) is None
    assert a.state.fill(a.state.membership, "k", Found(1, True, OLD)) is not None


@pytest.mark.at_once
def test_global_notes_the_number_before_it_reads_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that takes its time may read a value that is invalidated meanwhile."""
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    read = world.engine.read

    def slow(key: str) -> Stored | None:
        stored = read(key)
        world.state._log.append("other")
        return stored

    reading = a.begin_get("k")
    monkeypatch.setattr(world.engine, "read", slow)
    reading.send()
    reading.answer()
    assert world.state._log.seq == 1
    assert a.state.entries["k"].seq == 0


def same_bucket(vector: Vector, one: str, other: str) -> bool:
    return vector.bucket(one) == vector.bucket(other)


def test_a_whole_cache_drop_raises_every_word() -> None:
    _world, a, _b, reading = in_flight()
    a.state._flush(7)
    assert a.state.vector.after("k", 6) and not a.state.vector.after("k", 7)
    reading.answer()
    assert "k" not in a.state.entries


REQUESTS: dict[str, Callable[[Member], Call]] = {
    "get": lambda a: a.begin_get("k"),
    "get_many": lambda a: a.begin_get("k", "l"),
    "wait": lambda a: a.begin_wait("k", a.world.now + 5),
    "set": lambda a: a.begin_set(("l", b"mine")),
    "replace": lambda a: a.begin_set(("k", b"mine"), replace=True),
    "occupied": lambda a: a.begin_set(("k", b"mine")),
}


@pytest.mark.parametrize("late", ["", "before", "after"])
@pytest.mark.parametrize("what", REQUESTS)
def test_a_reply_to_a_request_of_a_former_membership_is_not_stored(what: str, late: str) -> None:
    """The next session may count from the same numbers. The reply may come to a repeat."""
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    request = REQUESTS[what](a)
    request.send()
    if late == "before":
        request.time_out()
    a.receive(Refused(a.state.epoch, a.state.session, 0, Refusal.UNKNOWN_SESSION, ""))
    world.live(0.2)
    if late == "after":
        request.time_out()
    assert a.state.session
    request.answer()
    assert request.done and request.error is None
    assert not a.state.entries


def test_the_replies_of_many_keys_are_stored_under_the_same_rules() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.begin_set(("k", b"1"), ("l", b"2")).finish()
    reading = a.begin_get("k", "l")
    reading.send()
    b.delete("k")
    reading.answer()
    assert set(a.state.entries) == {"l"}
    again = a.begin_get("k", "l", "m")
    again.send()
    a.receive(Refused(a.state.epoch, a.state.session, 0, Refusal.UNKNOWN_SESSION, ""))
    a.state.former.forget()
    world.live(0.2)
    again.answer()
    assert not a.state.entries


def test_an_older_reply_does_not_take_the_place_of_a_newer_entry() -> None:
    world = World()
    (a,) = world.joined("a")
    membership = a.state.membership
    newer = a.state.fill(membership, "k", Found(5, True, OLD))
    assert a.state.fill(membership, "k", Found(4, True, OLD)) is None
    assert a.state.entries["k"] is newer


def test_a_value_that_is_too_large_leaves_the_former_entry_to_its_invalidation() -> None:
    """The host hears of each key that was cached and has been deleted."""
    world = World()
    a = world.member("a", cache_bytes=1000)
    world.settle()
    membership = a.state.membership
    a.state.fill(membership, "k", Found(0, True, OLD))
    large = Stored(bytes(16), "bytes", bytes(2000))
    assert a.state.fill(membership, "k", Found(1, True, large)) is None
    a.receive(Broadcast(world.epoch, 1, ["k"], True))
    a.tick()
    assert a.dropped == ["k"]
    assert not a.state.entries


# ---- applying -------------------------------------------------------------------------------


def test_word_and_entry_are_done_before_applied_counts_them_and_before_the_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    (a,) = world.joined("a")
    done: list[tuple[str, int, int, int]] = []
    note, invalidate = Vector.note, a.state._invalidate

    def noting(vector: Vector, key: str, seq: int) -> None:
        done.append(("word", seq, a.state.applied, a.state._acked))
        note(vector, key, seq)

    def invalidating(key: str, seq: int) -> None:
        done.append(("entry", seq, a.state.applied, a.state._acked))
        invalidate(key, seq)

    monkeypatch.setattr(Vector, "note", noting)
    monkeypatch.setattr(a.state, "_invalidate", invalidating)
    a.receive(Broadcast(world.epoch, 1, ["k", "l"], True))
    acknowledgement: Any
    (acknowledgement,) = a.tick()
    assert acknowledgement.applied == 2
    assert done == [("word", 1, 0, 0), ("entry", 1, 0, 0), ("word", 2, 1, 0), ("entry", 2, 1, 0)]
    assert (a.state.applied, a.state._acked) == (2, 2)


def test_the_words_of_a_renewal_are_written_before_the_new_lease_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hit between the two would find a new lease and an old entry."""
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"old")
    world.advance(world.lease)
    sync: Any
    (sync,) = a.tick()
    lapsed = a.state.lease_end
    ends: list[float] = []
    note = Vector.note

    def noting(vector: Vector, key: str, seq: int) -> None:
        ends.append(a.state.lease_end)
        note(vector, key, seq)

    monkeypatch.setattr(Vector, "note", noting)
    a.receive(Synced(world.epoch, a.state.session, sync.serial, 0, 1, ["k"]))
    assert ends == [lapsed]
    assert a.state.lease_end > world.now
    assert "k" not in a.state.entries


def test_an_invalidation_writes_its_word_also_if_the_entry_is_newer() -> None:
    """The entry may be evicted before a late reply comes, which is older."""
    world = World()
    (a,) = world.joined("a")
    membership = a.state.membership
    a.state.fill(membership, "k", Found(1, True, OLD))
    a.state._apply(1, ["k"])
    assert a.state.cache.discard("k")
    assert a.state.fill(membership, "k", Found(0, True, OLD)) is None


def test_words_only_grow() -> None:
    world = World()
    (a,) = world.joined("a")
    words = a.state.vector.words
    former = list(words)
    for first, keys in ((1, ["k"]), (1, ["k"]), (2, ["l", "k"]), (1, ["k", "l", "k"])):
        a.state._apply(first, keys)
        now = list(words)
        assert all(one <= other for one, other in zip(former, now))
        former = now
    assert max(former) == 3


def test_the_bucket_of_a_key_is_a_keyed_hash_of_its_bytes() -> None:
    """It is the same in every process and every version of Python."""
    one, other = Vector(b"0123456789abcdef", 1024), Vector(b"fedcba9876543210", 1024)
    keys = [f"key {number}" for number in range(100)]
    assert [one.bucket(key) for key in keys] == [one.bucket(key) for key in keys]
    assert [one.bucket(key) for key in keys] != [other.bucket(key) for key in keys]
    assert len({one.bucket(key) for key in keys}) > 80
    assert Vector(b"0123456789abcdef", 1 << 16).bucket("a") == 42_726


# ---- the end of a membership ----------------------------------------------------------------


def test_a_new_session_is_a_new_membership_and_the_old_one_is_empty_and_lapsed() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    former, vector = a.state.membership, a.state.vector
    a.receive(Refused(a.state.epoch, a.state.session, 0, Refusal.UNKNOWN_SESSION, ""))
    assert former.lease_end == memberships.LAPSED
    assert not former.entries
    assert a.state.membership is not former
    assert a.state.membership.entries is not former.entries
    assert a.state.vector is not vector


# ---- the index of several Locals ------------------------------------------------------------


def refused(a: Member) -> None:
    a.state.refused(Refused(a.state.epoch, a.state.session, 1, Refusal.UNKNOWN_SESSION, ""), 0.0)


ENDS: dict[str, Callable[[Member], object]] = {
    "invalidated": lambda a: a.state._invalidate("k", 9),
    "flushed": lambda a: a.state._flush(9),
    "session refused": refused,
    "closed": lambda a: a.state.goodbye(a.world.now),
    "evicted": lambda a: a.state.bound(0, 0),
    "replaced": lambda a: a.state.cache.insert("k", 9, bytes(16), "bytes", b"new"),
}
ENDS_OF_SHARED: dict[str, Callable[[Member], object]] = {
    "invalidated": ENDS["invalidated"],
    "closed": ENDS["closed"],
    "evicted": ENDS["evicted"],
    "replaced": ENDS["replaced"],
    "stopped": lambda a: a.state.lapse(),
    "page left": lambda a: a.state.detach(a.world.now),
    "page of another session": lambda a: a.state._share(a.state.page),  # type: ignore[arg-type]
}


def stored_in_index(a: Member) -> tuple[dict[str, Any], Any]:
    """Store an entry of ``"k"`` with the number 5. Returns an index that has it, and the entry."""
    index: dict[str, Any] = {}
    a.state.join_index(index)
    assert a.state.cache.insert("k", 5, bytes(16), "bytes", b"old") is index["k"]
    entry: Any = index["k"]
    assert entry.home is a.state.membership
    return index, entry


@pytest.mark.parametrize("how", ENDS)
def test_what_ends_an_entry_takes_its_home_away(how: str) -> None:
    """A hit in an index goes by the home alone."""
    (a,) = World().joined("a")
    index, entry = stored_in_index(a)
    ENDS[how](a)
    assert entry.home is None
    assert index.get("k") is a.state.entries.get("k")


@pytest.mark.parametrize("how", ENDS_OF_SHARED)
def test_what_ends_an_entry_of_a_shared_membership_takes_its_home_away(how: str) -> None:
    _page, (a, _b) = host(World(), "a", "b")
    index, entry = stored_in_index(a)
    ENDS_OF_SHARED[how](a)
    assert entry.home is None
    assert index.get("k") is a.state.entries.get("k")


def test_a_lapse_that_may_end_leaves_the_entries_at_home() -> None:
    (a,) = World().joined("a")
    _index, entry = stored_in_index(a)
    a.state.lapse()
    assert entry.home is not None
    assert a.state.membership.lease_end == memberships.LAPSED
