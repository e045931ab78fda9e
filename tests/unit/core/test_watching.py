"""Watchers are told of a deletion when it is complete, and of every one, or to look anew."""

from __future__ import annotations

import pytest

from dstore.core.local import watching
from dstore.protocol.messages import Committed
from tests.unit.core.world import LEASE, Member, World


def watcher(world: World, member: Member, number: int = 1) -> None:
    """A watcher that has been told to look at everything."""
    member.state.watch(number, world.now)
    world.settle()
    assert member.told.pop() == (number, None)


def test_every_deletion_and_replacement_is_announced_also_of_what_is_not_held() -> None:
    world = World()
    a, b = world.joined("a", "b")
    watcher(world, a)
    b.set("k", b"v")
    b.set("k", b"w", replace=True)
    b.delete("k")
    assert a.told == []
    world.publish()
    world.settle()
    assert a.told == [(watching.ALL, "k"), (watching.ALL, "k")]
    assert b.told == []


def test_it_is_announced_when_a_get_no_longer_finds_the_old_value() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    b.set("k", b"v")
    assert c.get("k") == b"v"
    watcher(world, a)
    call = b.begin_delete("k")
    call.send()
    world.members.remove(c)  # which holds the value, and takes its time
    world.settle()
    assert a.get("k") == b"v"
    assert a.told == []
    world.members.append(c)
    world.settle()
    assert a.told == [(watching.ALL, "k")]
    assert a.get("k") is None


def test_what_was_dying_when_the_watch_began_delays_the_first_look() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    b.set("k", b"v")
    c.get("k")
    world.members.remove(c)
    b.begin_delete("k").send()
    world.settle()
    assert a.state.applied == 1
    a.state.watch(1, world.now)
    world.settle()
    assert a.told == [], "a look would find the old value, and nothing would tell of its end"
    world.members.append(c)
    world.live(0.1)
    assert a.told == [(1, None)]


def test_each_new_watcher_has_a_first_look_of_its_own() -> None:
    world = World()
    a, b = world.joined("a", "b")
    watcher(world, a, 1)
    b.set("k", b"v")
    watcher(world, a, 2)
    b.delete("k")
    world.publish()
    world.settle()
    assert a.told == [(watching.ALL, "k")]


def test_news_that_is_lost_comes_with_the_next_renewal() -> None:
    world = World()
    a, b = world.joined("a", "b")
    watcher(world, a)
    b.set("k", b"v")
    b.begin_delete("k").send()
    b.turn()
    world.publish()
    assert any(isinstance(message, Committed) for message in a.published)
    a.published.clear()
    world.live(LEASE / 2)
    assert a.told == [(watching.ALL, "k")]


def test_news_that_comes_before_the_deletion_waits_for_it() -> None:
    world = World()
    a, b = world.joined("a", "b")
    watcher(world, a)
    b.set("k", b"v")
    b.begin_delete("k").send()
    b.turn()
    world.publish()
    deletion, settled = a.published
    assert isinstance(settled, Committed)
    a.receive(settled)
    a.tick()
    assert a.told == []
    a.receive(deletion)
    a.tick()
    assert a.told == [(watching.ALL, "k")]


def test_a_flush_and_a_new_session_are_looks_at_everything() -> None:
    world = World(log_length=1)
    a, b = world.joined("a", "b")
    watcher(world, a)
    world.members.remove(a)
    for key in "klm":
        b.set(key, b"v")
        b.delete(key)
    a.published.clear()
    world.members.append(a)
    world.live(LEASE / 2)
    assert a.told == [(watching.ALL, None)]
    a.told.clear()
    world.start_global()
    world.live(2.0)
    assert a.told == [(watching.ALL, None)]
    a.told.clear()
    b.set("k", b"v")
    b.delete("k")
    world.settle()
    assert a.told == [(watching.ALL, "k")]


def test_a_watch_that_begins_before_the_session_looks_once() -> None:
    world = World()
    a = world.member("a")
    a.state.watch(1, world.now)
    world.settle()
    assert a.told == [(watching.ALL, None)]


def test_too_many_that_wait_become_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "UNCOMMITTED_MAX", 3)
    world = World()
    a, b, c = world.joined("a", "b", "c")
    b.set("held", b"v")
    c.get("held")
    watcher(world, a)
    world.members.remove(c)
    b.begin_delete("held").send()
    world.settle()
    for key in "klmn":
        b.set(key, b"v")
        b.begin_delete(key).send()
        world.settle()
    world.members.append(c)
    world.live(0.1)
    assert a.told[0] == (watching.ALL, None)
    assert len(a.told) <= 3


def test_global_forgets_those_who_watch_no_more_or_have_gone() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    for member in (a, b):
        watcher(world, member)
    assert world.state.metrics(world.now)["watching"] == 2
    a.state.watching.end(1)
    b.state.goodbye(world.now)
    world.live(LEASE)
    assert world.state.metrics(world.now)["watching"] == 0
    c.set("k", b"v")
    c.delete("k")
    world.publish()
    assert a.published
    assert not any(isinstance(message, Committed) for message in a.published)
