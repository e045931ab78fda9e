"""Keys with a time to live: a deletion in two phases that Global begins by itself."""

from __future__ import annotations

import pytest

from dstore.core.authority import deadlines
from dstore.protocol.messages import (
    Expire,
    ExpireReply,
    ExpireStatus,
    Set,
    SetItem,
    SetReply,
    SetStatus,
    Stored,
)
from tests.unit.core.expiry import STORED, TTL, bound
from tests.unit.core.world import LEASE, World


def test_a_key_expires_when_its_time_has_passed_and_not_before() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=TTL)
    a.set("l", b"v")
    world.live(TTL - 0.01)
    assert a.hit("k") == b"v"
    world.live(0.02)
    assert not bound(world)
    assert (a.hit("k"), a.get("k")) == (None, None)
    assert a.get("l") == b"v", "a key without a time to live stays"


def test_while_writes_are_held_nothing_expires_and_afterwards_it_does() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=TTL)
    a.set("l", b"v", ttl=2 * TTL)
    world.state.hold_writes()
    world.live(TTL + 1.0)
    assert bound(world)
    assert [key for key, _, _ in world.state.deadlines()] == ["k", "l"]
    world.state.take_writes(world.now)
    world.live(0.1)
    assert not bound(world)
    assert a.set("k", b"new").status is STORED
    world.live(TTL)
    assert not bound(world, "l")


def test_an_expiry_waits_for_its_holders_as_any_deletion_does() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=0.5)
    b.get("k")
    world.members.remove(b)
    world.renew(a)
    world.live(0.6)
    assert bound(world), "b may still answer"
    assert b.hit("k") == b"v"
    world.live(LEASE)
    assert not bound(world)
    assert b.hit("k") is None, "its lease has run out"


def test_holders_and_watchers_are_notified() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.state.watch(1, world.now)
    world.settle()
    b.told.clear()
    a.set("k", b"v", ttl=TTL)
    world.live(TTL + 0.1)
    assert b.told == [(0, "k")]
    assert "k" in a.dropped


def test_the_value_of_a_key_that_is_about_to_go_is_not_cached() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=1.0)
    world.members.remove(a)
    world.live(1.1)
    assert bound(world)
    assert b.get("k") == b"v"
    assert b.hit("k") is None


def test_a_set_without_a_time_to_live_needs_no_look_at_the_wall_clock() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    assert world.state._deadlines.wake_at == float("inf")
    assert world.state.metrics(world.now)["deadlines"] == 0


# ---- EXPIRE, PERSIST, TTL ---------------------------------------------------------------------


def test_the_time_that_is_left() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=TTL)
    a.set("l", b"v")
    assert a.ttl("k") == (True, TTL)
    world.advance(4.0)
    _, left = a.ttl("k")
    assert left == pytest.approx(TTL - 4.0)
    assert a.ttl("l") == (True, None)
    assert a.ttl("m") == (False, None)


def test_the_time_that_is_left_is_never_negative() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=1.0)
    world.members.remove(a)
    world.live(1.5)
    assert b.ttl("k") == (True, 0.0)


def test_expire_gives_another_deadline_and_the_former_one_counts_no_more() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1.0)
    assert a.expire("k", TTL) is ExpireStatus.DONE
    world.live(5.0)
    assert a.get("k") == b"v"
    assert a.expire("k", 1.0) is ExpireStatus.DONE
    world.live(1.1)
    assert a.get("k") is None


def test_persist_takes_the_deadline_away() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1.0)
    assert a.expire("k", None) is ExpireStatus.DONE
    world.live(3.0)
    assert a.get("k") == b"v"
    assert a.ttl("k") == (True, None)
    assert world.state._deadlines.bytes == 0


def test_expire_of_a_key_without_a_value() -> None:
    world = World()
    (a,) = world.joined("a")
    assert a.expire("k", 1.0) is ExpireStatus.MISSING
    assert a.expire("k", None) is ExpireStatus.MISSING


def test_expire_of_a_key_that_is_being_deleted_queues_and_finds_it_missing() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v")
    deletion = b.begin_delete("k")
    deletion.send()
    call = b.begin_expire("k", 1.0)
    assert call.send() is None
    a.turn()
    assert [each.items for each in call.replies] == [[ExpireStatus.MISSING]]


def test_expire_of_a_key_that_is_being_replaced_is_for_the_new_value() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v")
    b.begin_set(("k", b"w"), replace=True).send()
    call = b.begin_expire("k", 1.0)
    assert call.send() is None
    a.turn()
    assert [each.items for each in call.replies] == [[ExpireStatus.DONE]]
    world.live(1.1)
    assert not bound(world)


def test_expire_and_persist_of_a_key_whose_deadline_has_passed_find_it_missing() -> None:
    world = World()
    a, b = world.joined("a", "b")
    for key, ttl in (("k", TTL), ("l", None)):
        a.set(key, b"v", ttl=1.0)
        world.advance(1.5)  # and Global has not looked yet
        call = b.begin_expire(key, ttl)
        assert call.send() is None, "it waits until the holder has dropped the value"
        world.settle()
        assert [each.items for each in call.replies] == [[ExpireStatus.MISSING]]


def test_a_repeated_expire_is_executed_once() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v")
    call = a.begin_expire("k", 1.0)
    message = call.message
    first = call.send()
    assert isinstance(message, Expire)
    b.expire("k", TTL)
    world.deliver(call.route, message)
    assert list(call.replies) == [first, first]
    assert first == ExpireReply(*message[:3], [ExpireStatus.DONE])
    assert b.ttl("k") == (True, TTL), "the second EXPIRE stands"


def test_an_expire_of_many_keys_has_an_outcome_for_each() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    a.begin_set(("l", b"v")).finish()
    writer = a.state.writer
    write = writer.reserve()
    message = Expire(world.epoch, writer.session, 77, write, write, 1.0, ["k", "m", "l"])
    world.deliver(b"a/many", message)
    (reply,) = world.inboxes[b"a/many"]
    done, missing = ExpireStatus.DONE, ExpireStatus.MISSING
    assert reply == ExpireReply(*message[:3], [done, missing, done])


# ---- the wall clock ---------------------------------------------------------------------------


def test_a_wall_clock_that_is_set_back_lets_keys_live_longer_and_revives_none() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=5.0)
    world.live(4.0)
    world.set_back = 100.0
    _, left = a.ttl("k")
    assert left == pytest.approx(1.0, abs=deadlines.LOOK_EVERY), "the clock stands"
    world.live(50.0)
    assert a.get("k") == b"v"
    a.set("l", b"v", ttl=1.0)
    world.live(52.0)
    assert (a.get("k"), a.get("l")) == (None, None)


def test_a_wall_clock_that_is_set_forward_is_noticed_soon() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1000.0)
    world.live(5.0)
    world.set_back = -2000.0
    world.live(deadlines.LOOK_EVERY + 0.1)
    assert a.get("k") is None


# ---- the end ----------------------------------------------------------------------------------


def test_a_global_that_closes_begins_no_expiry() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1.0)
    world.state.close()
    world.live(2.0)
    assert world.state.idle
    assert bound(world)
    assert world.state.wake_at > world.now


def test_an_expiry_belongs_to_no_session_and_its_memory_is_given_back() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=1.0)
    b.get("k")
    world.members.remove(b)
    world.live(1.1)
    account = world.state._sessions.writes_of_global
    assert account.taken > 0
    world.live(LEASE)
    assert account.taken == 0


def test_a_set_with_a_time_to_live_is_repeated_safely() -> None:
    world = World()
    (a,) = world.joined("a")
    call = a.begin_set(("k", b"v"), ttl=1.0)
    message = call.message
    assert isinstance(message, Set)
    assert message.ttl == 1.0
    call.send()
    world.live(1.1)
    world.deliver(call.route, message)
    replies = [each.items[0].status for each in call.replies if isinstance(each, SetReply)]
    assert replies == [STORED, STORED]
    assert not bound(world), "the repeat binds nothing"


def test_an_item_of_a_set_that_is_not_bound_leaves_no_deadline() -> None:
    world = World()
    (a,) = world.joined("a")
    wrong = SetItem("b3:" + "0" * 64, Stored(world.random16(), "bytes", b"v"))
    writer = a.state.writer
    write = writer.reserve()
    message = Set(world.epoch, writer.session, 7, write, write, False, [wrong], 0, 1.0)
    world.deliver(b"a/x", message)
    (reply,) = world.inboxes[b"a/x"]
    assert isinstance(reply, SetReply)
    assert reply.items[0].status is SetStatus.MISMATCH
    assert len(world.state._deadlines) == 0
