"""A Global that conceals: no identity hears of keys that it may not see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from dstore.core.authority import invalidations
from dstore.core.authority.effects import Publish
from dstore.core.authority.identity import Identity
from dstore.core.local.watching import ALL
from dstore.protocol.messages import Ack, Get, Hello, Kind, Refusal, Sync
from tests.unit.core.identities import READER, ask, bound_large, writer
from tests.unit.core.test_strangers import owner
from tests.unit.core.world import LEASE, Member, World


def concealed(*identities: Identity) -> tuple[World, list[Member]]:
    world = World()
    world.state.conceal()
    members = [world.joined(each.name, identity=each)[0] for each in identities]
    return world, members


def test_a_concealed_global_broadcasts_no_names_and_no_tokens() -> None:
    """A subscriber cannot be told apart from others: each holder is told by itself."""
    world, members = concealed(*map(writer, "abcd"))
    a = members[0]
    bound_large(world, a.identity, "large")
    published: list[Any] = []
    perform = world._perform

    def noted(effects: Iterable[Any]) -> None:
        effects = list(effects)
        published.extend(each for each in effects if isinstance(each, Publish))
        perform(effects)

    world._perform = noted  # type: ignore[method-assign]
    a.set("k", b"v")
    for member in members:
        member.get("k")
    call = members[1].begin_delete("k", "large")
    call.send()
    assert sum(bool(each.control) for each in members) == 4  # most Locals, and no broadcast
    world.settle()
    assert call.replies
    for _ in range(50):
        a.set("x", b"v")
        a.delete("x")
    world.live(2 * LEASE)
    assert published == []
    assert a.state.applied == world.state._log.seq


def test_keys_that_a_session_may_not_see_have_no_name_in_its_invalidations() -> None:
    some = writer("some", "a/")
    world, (a, b) = concealed(some, writer("all"))
    b.set("a/1", b"v")
    b.set("c/1", b"v")
    assert a.get("a/1") == b"v"
    for key in ("c/1", "a/1"):
        b.begin_delete(key).send()
    (synced,) = a.control
    assert synced.keys == ["", "a/1"]  # type: ignore[union-attr]
    world.settle()
    assert a.hit("a/1") is None
    assert (a.state.applied, a.state.counters["drops"]) == (2, 1)
    a.outgoing.clear()
    sync = ask(world, some, Sync(*owner(a), 99, 0, 0))
    assert sync.keys == ["", "a/1"]


def test_a_key_without_a_name_counts_and_nothing_is_dropped_or_announced() -> None:
    some = writer("some", "a/")
    world, (a, b) = concealed(some, writer("all"))
    a.state.watch(1, world.now)
    world.settle()
    a.told.clear()
    b.set("a/1", b"v")
    b.set("c/1", b"v")
    assert a.get("a/1") == b"v"
    words = bytes(a.state.vector.words)
    b.delete("c/1")
    world.publish()
    world.settle()
    assert (a.state.applied, a.hit("a/1"), a.told) == (1, b"v", [])
    assert bytes(a.state.vector.words) == words
    b.delete("a/1")
    world.live(LEASE / 10)
    assert a.told == [(ALL, "a/1")]


@pytest.mark.parametrize("kind", [Kind.MEMBER, Kind.OBSERVER])
def test_who_watches_is_sent_what_a_broadcast_would_have_told(kind: Kind) -> None:
    world, (a,) = concealed(writer("all"))
    watcher = Identity("watcher", READER)
    welcome = ask(world, watcher, Hello(world.random16(), 0, 0, "w", kind), b"w")
    ask(world, watcher, Sync(world.epoch, welcome.secret, 1, 0, 0, kind is Kind.MEMBER), b"w")
    for number in range(3):
        a.set(f"k{number}", b"v")
        a.delete(f"k{number}")
        world.inboxes[b"w"].clear()
        world.publish()
        (synced,) = world.inboxes[b"w"]
        assert synced[2:7] == (0, number, number + 1, [f"k{number}"], False)


def test_who_neither_holds_nor_watches_is_not_woken_up_and_hears_with_its_next_renewal() -> None:
    world, (a, b) = concealed(writer("a"), writer("b"))
    a.set("k", b"v")
    a.delete("k")
    world.publish()
    assert not b.control
    world.renew(b)
    assert b.state.applied == 1


def test_a_watcher_that_was_not_sent_one_invalidation_asks_when_the_next_one_comes() -> None:
    world, (a, b) = concealed(writer("a"), writer("b"))
    b.state.watch(1, world.now)
    world.settle()
    for key in ("k", "l"):
        a.set(key, b"v")
        a.delete(key)
        world.members.remove(b)
        world.publish()
        world.members.append(b)
        if key == "k":
            b.control.clear()  # lost with its connection
    b.told.clear()
    b.listen()
    assert b.state.applied == 0
    world.live(LEASE / 10)  # long before it would have renewed its lease
    assert b.state.applied == 2
    assert b.told == [(ALL, "k"), (ALL, "l")]


def test_a_session_acknowledges_only_what_was_sent_to_it() -> None:
    """What is kept for watchers has reached no one else."""
    world, (a, b) = concealed(writer("a"), writer("b"))
    a.set("k", b"v")
    a.delete("k")
    world.publish()
    assert ask(world, b.identity, Ack(*owner(b), 1)).refusal is Refusal.BAD_MESSAGE


def test_tokens_of_large_values_reach_who_sees_their_keys() -> None:
    """Broadcasts name them elsewhere, so that files without a cache entry are released."""
    all_, some = writer("all"), writer("some", "a/")
    world, (a, b) = concealed(all_, some)
    tokens = [bound_large(world, all_, key).token for key in ("a/large", "c/large")]
    for member, keys in ((a, ["a/large", "c/large"]), (b, ["a/large"])):
        get = Get(world.epoch, member.state.session, 1, keys)
        assert not ask(world, member.identity, get).uncacheable
    a.begin_delete("a/large", "c/large").send()
    world.settle()
    assert a.given_up == tokens
    assert b.given_up == tokens[:1]


def test_tokens_that_are_asked_for_again_and_again_are_sent_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invalidations, "REPEATED_MAX", 2)
    mine = writer("mine")
    world, (a,) = concealed(mine)
    world.state._invalidations.log.length = 2
    token = bound_large(world, mine, "large").token
    a.begin_delete("large").send()
    world.settle()
    said = [ask(world, mine, Sync(*owner(a), 1, 0, 0)) for _ in range(4)]
    assert [each.keys for each in said] == [["large"], ["large"], ["large"], None]
    assert [each.tokens for each in said] == [[token], [token], [token], []]


def test_what_was_kept_before_is_not_broadcast_once_concealed() -> None:
    world = World()
    a, b, _c = world.joined("a", "b", "c")
    a.set("k", b"v")
    a.delete("k")
    world.state.conceal()
    world.publish()
    assert not b.published
