"""The hit: one contract for the pure classes and for the compiled ones.

Between the steps of the pure ones the tests patch the clock. The compiled ones read it in C; there
another order of the steps shows in what a key does during the look-up (:class:`Interrupting`). That
is the one step in which code in Python can run, and it is between all the others.
"""

from __future__ import annotations

import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from dstore.client import hits
from dstore.core.local import membership
from dstore.protocol.messages import Stored
from dstore.runtime import clock

LAPSED = 0.0
FAR = float("inf")


def pure_classes() -> SimpleNamespace:
    return SimpleNamespace(
        Entry=membership.PureEntry,
        Membership=membership.PureMembership,
        Present=membership.PurePresent,
        Hits=hits.PureHits,
        find=hits.pure_find,
        RAISE=inspect.signature(hits.PureHits.get).parameters["default"].default,
    )


def native_classes() -> SimpleNamespace:
    try:
        import dstore._native as found  # type: ignore[import-not-found]
    except ImportError:
        pytest.skip("the compiled part is not built")
    return SimpleNamespace(**vars(found))


@pytest.fixture(params=[pure_classes, native_classes], ids=["pure", "native"])
def kind(request: pytest.FixtureRequest) -> Any:
    """The classes of one kind, by name."""
    made = request.param()

    class Base:
        """What a Node derives from besides: a class without slots."""

        def __init__(self) -> None:
            self.calls: list[tuple[Any, ...]] = []

    class Node(Base, made.Hits):  # type: ignore[misc, name-defined]
        """A Node that notes what else it is asked."""

        def __init__(self, membership: Any) -> None:
            super().__init__()
            self._hits = 0
            self._state = State(membership)

        def _get_named(self, *arguments: Any) -> Any:
            self.calls.append(("named", *arguments))
            return "named"

        def _get_missed(self, *arguments: Any) -> Any:
            self.calls.append(("missed", *arguments))
            return "missed"

        def _opened(self, entry: Any) -> Any:
            self.calls.append(("opened", entry))
            return "opened"

    class State(made.Present):  # type: ignore[misc, name-defined]
        """A state with attributes of its own."""

        def __init__(self, membership: Any) -> None:
            super().__init__(membership)
            self.label = "state"

    made.Node, made.State = Node, State
    return made


def words_of(*numbers: int) -> memoryview:
    words = memoryview(bytearray(8 * len(numbers))).cast("Q")
    for place, number in enumerate(numbers):
        words[place] = number
    return words


def joined(kind: Any, words: memoryview | None = None, **values: Any) -> Any:
    """Return a Node with a lease and one entry a value, each of the seq 5 and in bucket 1."""
    entries = {key: kind.Entry(key, value, 5, 100, None, 1) for key, value in values.items()}
    membership = kind.Membership(entries, words)
    membership.lease_end = FAR
    return kind.Node(membership)


# ---- hits and misses ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"value", ["a"], None, 0, ""])
def test_a_hit_returns_the_object_and_leaves_its_traces(kind: Any, value: Any) -> None:
    node = joined(kind, k=value)
    assert node.get("k") is value
    assert node.get("k", default=1) is value
    assert node._hits == 2
    assert node._state.membership.entries["k"].visited == 1
    assert node.calls == []


def test_a_key_that_is_not_cached_is_asked_for(kind: Any) -> None:
    node = joined(kind, k=b"v")
    default: list[Any] = []
    assert node.get("other") == "missed"
    assert node.get("other", default) == "missed"
    assert node.get(key="other", default=default) == "missed"
    assert node.calls[0] == ("missed", "other", kind.RAISE)
    assert all(call[2] is default for call in node.calls[1:])
    assert node._hits == 0


class Text(str):
    """A text with a hash and an equality of its own."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash("k")

    def __eq__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize("key", [b"k", Text("other"), 1, None, [], {}])
def test_only_a_text_itself_is_looked_up(kind: Any, key: Any) -> None:
    node = joined(kind, k=b"v")
    assert node.get(key, 7) == "named"
    assert node.calls == [("named", key, 7)]
    assert node.calls[0][1] is key


def test_an_encoded_value_is_opened_by_every_hit(kind: Any) -> None:
    class Derived(Stored):
        """Not Stored itself."""

        __slots__ = ()

    derived = Derived(bytes(16), "bytes", b"v")
    node = joined(kind, k=Stored(bytes(16), "bytes", b"v"), other=derived)
    entry = node._state.membership.entries["k"]
    assert node.get("k") == node.get("k") == "opened"
    assert node.calls == [("opened", entry)] * 2
    assert (node._hits, entry.visited) == (2, 1)
    assert node.get("other") is derived


def test_get_passes_on_what_is_raised(kind: Any) -> None:
    class Failing(kind.Node):  # type: ignore[misc]
        def _get_missed(self, *arguments: Any) -> Any:
            raise KeyError(*arguments)

    node = Failing(kind.Membership({}))
    with pytest.raises(KeyError, match="other"):
        node.get("other")
    with pytest.raises(TypeError):
        node.get()
    with pytest.raises(TypeError):
        node.get("k", 1, 2)


def test_find_and_hit_return_the_entry(kind: Any) -> None:
    node = joined(kind, k=b"v")
    entry = node._state.membership.entries["k"]
    assert kind.find(node._state, "k") is entry
    assert (node._hits, entry.visited) == (0, 1)
    assert node._hit("k") is entry
    assert node._hits == 1
    assert node._hit("other") is kind.find(node._state, "other") is None
    assert node._hits == 1
    with pytest.raises(TypeError, match="unhashable"):
        kind.find(node._state, [])


# ---- the lease ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [LAPSED, -1.0, 1e-9])
def test_a_lapsed_lease_answers_nothing(kind: Any, end: float) -> None:
    node = joined(kind, k=b"v")
    node._state.membership.lease_end = end
    assert node.get("k") == "missed"
    assert node._hit("k") is None
    assert node._state.membership.entries["k"].visited == node._hits == 0


def test_a_membership_begins_without_a_lease(kind: Any) -> None:
    assert kind.Membership({}).lease_end == LAPSED


def test_a_lease_has_ended_at_its_end(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = joined(kind, k=b"v")
    if type(kind.find) is FunctionType:  # in Python
        monkeypatch.setattr(clock, "now", lambda: 100.0)
        monkeypatch.setattr(clock, "now_ns", lambda: 100 * 10**9)
    for _ in range(1000):  # the compiled clock may well read the same
        node._state.membership.lease_end = clock.now()
        assert node._hit("k") is None


def test_a_lease_ends_on_the_clock_of_leases(kind: Any) -> None:
    node = joined(kind, k=b"v")
    node._state.membership.lease_end = end = clock.now() + 0.02
    while True:
        found = node.get("k")
        if clock.now() >= end:  # this thread may have stood still meanwhile
            break
        assert found == b"v"
    assert node.get("k") == "missed"


# ---- the words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "found"), [(0, True), (4, True), (5, True), (6, False)])
def test_a_word_up_to_the_seq_of_the_entry_is_a_hit(kind: Any, word: int, found: bool) -> None:
    node = joined(kind, words_of(9, word, 9), k=b"v")
    assert node.get("k") == (b"v" if found else "missed")
    assert (node._hit("k") is not None) is found
    assert bool(node._state.membership.entries["k"].visited) is found


def test_words_are_compared_as_unsigned_numbers(kind: Any) -> None:
    node = joined(kind, words_of(0, 2**64 - 1), k=b"v")
    entry = node._state.membership.entries["k"]
    assert node.get("k") == "missed"
    entry.seq = 2**64 - 1
    assert node.get("k") == b"v"


def test_a_hit_sees_a_word_as_soon_as_it_is_written(kind: Any) -> None:
    words = words_of(0, 0)
    node = joined(kind, words.toreadonly(), k=b"v")
    assert node.get("k") == b"v"
    words[1] = 6
    assert node.get("k") == "missed"


def test_a_bucket_beyond_the_words_is_an_error(kind: Any) -> None:
    node = joined(kind, words_of(0), k=b"v")
    with pytest.raises(IndexError):
        node.get("k")
    with pytest.raises(IndexError):
        kind.find(node._state, "k")


# ---- what comes between the steps ---------------------------------------------------------------


class Interrupting(str):
    """A key among the entries: the look-up of an equal text calls ``between``."""

    __slots__ = ("between",)
    between: Callable[[], object]

    def __eq__(self, other: object) -> bool:
        self.between()
        return super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()


def interrupted(kind: Any, between: Callable[[Any, Any], object], **options: Any) -> Any:
    """Return a Node with an entry of ``"k"`` whose look-up calls ``between(node, entry)``."""
    node = joined(kind, **options)
    key = Interrupting("k")
    entry = kind.Entry("k", b"old", 5, 100, None, 1)
    node._state.membership.entries[key] = entry
    key.between = lambda: between(node, entry)
    return node


def assert_missed(node: Any, prepare: Callable[[], object] = lambda: None) -> None:
    prepare()
    assert node.get("k") == "missed"
    prepare()
    assert node._hit("k") is None


def test_a_renewal_between_the_steps_does_not_revive_an_entry(kind: Any) -> None:
    """The lease lapses before the look-up, and a renewal comes after it."""

    def renew(node: Any, _: Any) -> None:
        node._state.membership.lease_end = FAR

    node = interrupted(kind, renew)

    def lapse() -> None:
        node._state.membership.lease_end = clock.now()

    assert_missed(node, lapse)


def test_the_clock_is_read_after_the_look_up(kind: Any) -> None:
    """The lease is valid before the look-up, and lapses during it."""

    def wait(node: Any, _: Any) -> None:
        while clock.now() < node._state.membership.lease_end:
            pass

    node = interrupted(kind, wait)

    def lease() -> None:
        node._state.membership.lease_end = clock.now() + 0.005

    assert_missed(node, lease)


def test_the_word_is_read_after_the_look_up(kind: Any) -> None:
    words = words_of(0, 0)

    def invalidate(_: Any, __: Any) -> None:
        words[1] = 6

    assert_missed(interrupted(kind, invalidate, words=words), lambda: words.__setitem__(1, 0))


def test_entries_of_one_membership_never_meet_the_lease_of_another(kind: Any) -> None:
    def switch(node: Any, _: Any) -> None:
        node._state.membership = kind.Membership({})
        node._state.membership.lease_end = FAR

    node = interrupted(kind, switch)
    node._state.membership.lease_end = LAPSED
    old = node._state.membership
    assert_missed(node, lambda: setattr(node._state, "membership", old))


def test_what_a_hit_uses_is_not_freed_meanwhile(kind: Any) -> None:
    """The look-up of a key frees the state, the membership and all entries."""

    def free(node: Any, _: Any) -> None:
        node._state.membership.entries.clear()
        node._state = kind.State(kind.Membership({}))
        gc.collect()

    assert interrupted(kind, free, words=words_of(0, 0)).get("k") in ("missed", b"old")


def test_the_clock_is_compared_with_the_noted_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the pure hit reads the clock: the key is deleted, and a renewal comes."""
    kind = pure_classes()
    membership = kind.Membership({"k": kind.Entry("k", b"old", 5, 100)})
    membership.lease_end = 100.0

    def renewed() -> int:
        membership.entries.clear()
        membership.lease_end = 200.0
        return 150 * 10**9

    monkeypatch.setattr(clock, "now_ns", renewed)
    assert kind.find(kind.Present(membership), "k") is None


# ---- attributes ---------------------------------------------------------------------------------


def test_an_entry_has_what_it_was_made_of(kind: Any) -> None:
    entry = kind.Entry("k", "v", 2**64 - 1, 100)
    assert (entry.key, entry.value, entry.seq, entry.since) == ("k", "v", 2**64 - 1, 2**64 - 1)
    assert (entry.size, entry.shared, entry.bucket) == (100, None, 0)
    assert not entry.sound
    assert (entry.visited, entry.newer, entry.older) == (0, None, None)
    entry = kind.Entry(key="k", value="v", seq=1, size=2, shared=b"token", bucket=2**32 - 1)
    assert (entry.size, entry.shared, entry.bucket) == (2, b"token", 2**32 - 1)
    assert repr(entry) == "<Entry 'k' seq=1 visited=0>"


def test_an_entry_can_be_changed(kind: Any) -> None:
    entry, other = kind.Entry("k", "v", 1, 2), kind.Entry("l", "v", 1, 2)
    changes: dict[str, list[Any]] = {
        "seq": [0, 2**64 - 1], "since": [0, 2**64 - 1], "size": [0, 2**40], "bucket": [7],
        "shared": [b"token", None], "sound": [True, False], "visited": [0, 1, 2, True, False],
        "newer": [other, None, entry], "older": [other, None, entry],
    }  # fmt: skip
    for name, values in changes.items():
        for value in values:
            setattr(entry, name, value)
            assert getattr(entry, name) == value
    with pytest.raises(AttributeError):
        entry.unknown = 1


def test_a_membership_has_what_it_was_made_of(kind: Any) -> None:
    entries, words = {"k": kind.Entry("k", "v", 1, 2)}, words_of(1)
    membership = kind.Membership(entries, words)
    assert membership.entries is entries
    assert membership.words is words
    assert (membership.epoch, membership.session, membership.applied) == (0, 0, 0)
    membership.epoch = membership.session = membership.applied = 2**64 - 1
    assert membership.epoch == membership.session == membership.applied == 2**64 - 1
    membership.lease_end = 1
    assert membership.lease_end == 1.0
    assert repr(membership) == (
        "<Membership epoch=ffffffffffffffff joined=True applied=18446744073709551615 "
        "lease_end=1.000 entries=1>"
    )
    assert repr(kind.Membership({})) == (
        "<Membership epoch=0 joined=False applied=0 lease_end=0.000 entries=0>"
    )


def test_a_state_names_another_membership(kind: Any) -> None:
    node = joined(kind, k=b"v")
    state, other = node._state, kind.Membership({})
    state.membership = other
    assert state.membership is other
    assert state.label == "state"
    node._state = kind.State(joined(kind, k=b"w")._state.membership)
    assert node.get("k") == b"w"
    node._hits += 5
    assert node._hits == 6


def test_a_node_without_a_state_raises(kind: Any) -> None:
    node = kind.Node.__new__(kind.Node)
    for call in (node.get, node._hit):
        with pytest.raises(AttributeError):
            call("k")


# ---- memory -------------------------------------------------------------------------------------


class Value:
    """A value that can be watched."""


def test_entries_in_a_circle_are_freed(kind: Any) -> None:
    node = joined(kind, a=Value(), b=Value())
    a, b = node._state.membership.entries.values()
    a.newer, b.older, a.older, b.newer = b, a, b, a
    values = [weakref.ref(a.value), weakref.ref(b.value)]
    a.value.entries = node._state.membership.entries
    del node, a, b
    gc.collect()
    assert [value() for value in values] == [None, None]


def test_a_long_list_of_entries_is_freed(kind: Any) -> None:
    entry = None
    for number in range(1_000_000):  # half of these overflow the stack of C without care
        older, entry = entry, kind.Entry("k", number, 1, 1)
        entry.older = older


def test_a_value_is_freed_with_its_entry(kind: Any) -> None:
    node = joined(kind, k=Value())
    value = weakref.ref(node.get("k"))
    assert value() is not None
    node._state.membership.entries.clear()
    assert value() is None


def test_what_derives_from_the_classes_can_be_referred_to_weakly(kind: Any) -> None:
    node = joined(kind, k=b"v")
    state, membership = node._state, node._state.membership
    assert weakref.ref(node)() is node
    assert weakref.ref(state)() is state
    for thing in (membership, membership.entries["k"]):
        with pytest.raises(TypeError):
            weakref.ref(thing)


# ---- the compiled ones alone --------------------------------------------------------------------


@pytest.fixture
def native() -> Any:
    return native_classes()


def test_what_a_hit_reads_without_a_lock_stays(native: Any) -> None:
    entry = native.Entry("k", "v", 1, 2)
    membership = native.Membership({"k": entry}, words_of(1))
    changes = [(entry, "key"), (entry, "value"), (membership, "entries"), (membership, "words")]
    for thing, name in changes:
        with pytest.raises(AttributeError):
            setattr(thing, name, getattr(thing, name))
        with pytest.raises(AttributeError):
            delattr(thing, name)


@pytest.mark.parametrize(
    "words",
    [
        memoryview(bytearray(16)),
        memoryview(bytearray(16)).cast("q"),
        memoryview(bytearray(16)).cast("d"),
        memoryview(bytearray(32)).cast("Q")[::2],
        memoryview(bytearray(32)).cast("Q", (2, 2)),
        memoryview(bytearray(17))[1:].cast("Q"),
        memoryview(b"").cast("Q"),
        "words",
        8,
    ],
)
def test_words_that_are_none_are_refused(native: Any, words: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        native.Membership({}, words)


def test_released_words_are_still_there(native: Any) -> None:
    memory = bytearray(16)
    words = memoryview(memory).cast("Q")
    membership = native.Membership({"k": native.Entry("k", "v", 5, 1)}, words)
    membership.lease_end = FAR
    state = native.Present(membership)
    words.release()
    with pytest.raises(BufferError):
        memory.extend(bytes(1000))
    assert native.find(state, "k") is not None
    del membership, state
    memory.extend(bytes(1000))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seq", -1), ("seq", 2**64), ("bucket", -1), ("bucket", 2**32), ("visited", 256), ("seq", "")],
)
def test_a_number_out_of_range_is_refused(native: Any, name: str, value: Any) -> None:
    with pytest.raises((OverflowError, TypeError)):
        setattr(native.Entry("k", "v", 1, 2), name, value)


def test_other_types_are_refused(native: Any) -> None:
    class Entries(dict[str, Any]):
        """Has a look-up of its own, which a hit would not call."""

    entry, node = native.Entry("k", "v", 1, 2), native.Hits()
    state = native.Present(native.Membership({"k": "no entry"}))
    for call in (
        lambda: native.Membership(Entries()),
        lambda: native.Membership(None),
        lambda: native.Present(None),
        lambda: setattr(state, "membership", state),
        lambda: setattr(node, "_state", None),
        lambda: setattr(entry, "newer", "k"),
        lambda: native.find(state, "k"),
        lambda: native.find(None, "k"),
    ):
        with pytest.raises(TypeError):
            call()


def test_they_are_not_pickled(native: Any) -> None:
    membership = native.Membership({})
    for thing in (native.Entry("k", "v", 1, 2), membership, native.Present(membership)):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(thing)


def test_get_looks_like_the_pure_one(native: Any) -> None:
    pure = pure_classes().Hits
    for name in ("get", "_hit", "_get_named", "_get_missed", "_opened"):
        assert inspect.getdoc(getattr(native.Hits, name)) == inspect.getdoc(getattr(pure, name))
    assert native.Hits.get.__annotations__ == pure.get.__annotations__


# ---- threads ------------------------------------------------------------------------------------


def test_hits_while_another_thread_replaces_and_removes(kind: Any) -> None:
    """No hit returns what was removed, or lapsed with its membership, before the hit began."""
    keys = [f"k{number}" for number in range(50)]
    node = joined(kind)
    confirmed = 0
    failures: list[Any] = []
    end = clock.now() + 0.5

    def read() -> None:
        while clock.now() < end and not failures:
            for key in keys:
                least = confirmed
                value = node.get(key)
                if value != "missed" and (value[0] != key or value[1] < least):
                    failures.append((key, least, value))
            node.calls.clear()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    number = 0
    while clock.now() < end and not failures:
        number += 1
        membership = node._state.membership
        if number % 2:  # replace all entries by others
            for key in keys:
                membership.entries.pop(key, None)
                membership.entries[key] = kind.Entry(key, (key, number), 1, 1, None, 1)
        else:
            entries = {key: kind.Entry(key, (key, number), 1, 1, None, 1) for key in keys}
            node._state.membership = kind.Membership(entries, words_of(0, 0))
            node._state.membership.lease_end = FAR
            membership.lease_end = LAPSED
        confirmed = number
    for thread in threads:
        thread.join()
    assert failures == []
    assert node._hits > 0


# ---- several memberships with one index ---------------------------------------------------------


def indexed(kind: Any, *nodes: Any) -> Any:
    """Return a Node with the entries of several in its index."""
    node = kind.Node(kind.Membership({}))
    node._index = {}
    for each in nodes:
        home = each._state.membership
        for key, entry in home.entries.items():
            entry.home = home
            node._index[key] = entry
    return node


def test_an_index_has_the_entries_of_several_memberships(kind: Any) -> None:
    one, two = joined(kind, a=b"one"), joined(kind, words_of(0, 5), b=b"two")
    node = indexed(kind, one, two)
    assert (node.get("a"), node.get("b"), node.get("c")) == (b"one", b"two", "missed")
    assert node._hit("a").value == b"one"
    assert node._hits == 3
    found = kind.find(node._state, "b", node._index)
    assert (found.value, found.visited) == (b"two", 1)
    assert kind.find(node._state, "c", node._index) is None


def test_an_indexed_entry_is_valid_as_its_own_membership_says(kind: Any) -> None:
    words = words_of(0, 5)
    one, two = joined(kind, a=b"one"), joined(kind, words, b=b"two")
    node = indexed(kind, one, two)
    one._state.membership.lease_end = LAPSED
    assert (node.get("a"), node.get("b")) == ("missed", b"two")
    words[1] = 6
    assert node.get("b") == "missed"
    one._state.membership.lease_end = FAR
    assert node.get("a") == b"one"
    node._index["a"].home = None
    assert node._hit("a") is None


def test_a_hit_finds_no_entry_that_was_dropped(kind: Any) -> None:
    """Ctrl-C may come before it leaves the index, and another thread may put it back there."""
    home = joined(kind, a=b"v")._state.membership
    node = indexed(kind, kind.Node(home))
    entry = home.entries["a"]
    assert node.get("a") == b"v"
    entry.home = None
    assert node.get("a") == "missed"
    assert node._hit("a") is None
    assert kind.find(node._state, "a", node._index) is None
    assert node._index["a"] is entry


def interrupted_in_index(kind: Any, between: Callable[[Any], object]) -> Any:
    """Return a Node, the look-up of ``"k"`` in the index of which calls ``between(entry)``."""
    node = indexed(kind)
    key = Interrupting("k")
    entry = node._index[key] = kind.Entry("k", b"old", 5, 100)
    entry.home = kind.Membership({"k": entry})
    key.between = lambda: between(entry)
    return node


def test_a_renewal_does_not_revive_what_was_dropped_while_it_was_looked_up(kind: Any) -> None:
    def drop(entry: Any) -> None:
        home, entry.home = entry.home, None
        del home.entries["k"]
        home.lease_end = FAR

    assert interrupted_in_index(kind, drop).get("k") == "missed"
    assert interrupted_in_index(kind, drop)._hit("k") is None


def test_a_hit_goes_by_the_home_that_an_entry_has_after_the_look_up(kind: Any) -> None:
    """A forked child puts what it has inherited into a membership of its own."""

    def move(entry: Any) -> None:
        entry.home = kind.Membership(entry.home.entries)
        entry.home.lease_end = FAR

    assert interrupted_in_index(kind, move).get("k") == b"old"
    assert interrupted_in_index(kind, move)._hit("k").value == b"old"


def test_the_home_of_an_entry_is_not_freed_while_a_hit_uses_it(kind: Any) -> None:
    def free(entry: Any) -> None:
        entry.home.entries.clear()
        entry.home = None
        gc.collect()

    node = interrupted_in_index(kind, free)
    assert node.get("k") == "missed"
    node._index.clear()
    assert node._hit("k") is None


def test_hits_in_an_index_while_another_thread_replaces_and_drops(kind: Any) -> None:
    """No hit returns what was dropped before the hit began, though the index still has it."""
    keys = [f"k{number}" for number in range(50)]
    node = indexed(kind)
    homes = [joined(kind)._state.membership, joined(kind, words_of(0, 0))._state.membership]
    confirmed = 0
    failures: list[Any] = []
    done = False

    def read() -> None:
        while not done and not failures:
            for key in keys:
                least = confirmed
                value = node.get(key)
                if value != "missed" and (value[0] != key or value[1] < least):
                    failures.append((key, least, value))
            node.calls.clear()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    number = 0
    try:
        while not failures and number < 100_000 and (number < 500 or node._hits < 5_000):
            number += 1
            for key in keys:
                dropped = node._index.get(key)
                if dropped is not None:
                    dropped.home = None
                if number % 3:  # else the index keeps what was dropped
                    entry = kind.Entry(key, (key, number), 1, 1, None, 1)
                    entry.home = homes[number % 2]
                    node._index[key] = entry
            confirmed = number
    finally:
        done = True
        for thread in threads:
            thread.join()
    assert failures == []
    assert node._hits > 0
