"""Keys with a time to live: what else is under way on the key, and PUT."""

from __future__ import annotations

import pytest

from dstore.core.engine import NO_DEADLINE, Change, ChangeKind, Outcome
from dstore.protocol import content
from dstore.protocol.messages import DelStatus, SetStatus
from tests.unit.core.expiry import OCCUPIED, REPLACED, STORED, TTL
from tests.unit.core.world import WALL, Member, World

# ---- what else is under way on the key --------------------------------------------------------


def test_a_set_of_a_key_whose_deadline_has_passed_is_not_refused_as_occupied() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=1.0)
    world.advance(1.5)  # and Global has not looked yet
    call = b.begin_set(("k", b"w"))
    assert call.send() is None, "it waits until a, which holds the old value, has dropped it"
    world.settle()
    (reply,) = call.replies
    assert reply.items[0].status is STORED
    assert a.get("k") == b"w"
    assert a.ttl("k") == (True, None), "the old deadline has gone with the old value"


def test_a_replacement_has_a_deadline_of_its_own_or_none() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1.0)
    assert a.set("k", b"w", replace=True).status is REPLACED
    assert a.ttl("k") == (True, None)
    a.set("k", b"x", replace=True, ttl=TTL)
    assert a.ttl("k") == (True, TTL)
    world.live(2.0)
    assert a.get("k") == b"x"
    world.live(TTL)
    assert a.get("k") is None


def test_an_expiry_queues_behind_a_replacement_and_leaves_the_new_value() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=1.0)
    b.begin_set(("k", b"w"), replace=True).send()
    world.advance(1.5)
    world.tick()
    a.turn()
    world.settle()
    assert b.get("k") == b"w"


def test_an_expiry_that_has_queued_does_not_take_a_value_with_a_new_deadline() -> None:
    """The EXPIRE is not durable yet when the former deadline passes."""
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v"), ttl=1.0).send()
    world.commit()
    a.begin_expire("k", TTL).send()
    world.live(1.5)
    world.commit()
    world.settle()
    assert not world.batches
    assert world.state._log.seq == 0, "no deletion has begun"
    assert a.ttl("k") == (True, TTL - 1.5)


def test_a_deletion_of_a_key_with_a_deadline_leaves_none_for_the_next_value() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1.0)
    assert a.delete("k").status is DelStatus.DELETED
    a.set("k", b"w")
    world.live(2.0)
    assert a.get("k") == b"w"


def test_a_delete_that_meets_an_expiry_finds_the_key_missing() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=1.0)
    world.advance(1.5)
    world.tick()
    call = b.begin_delete("k")
    assert call.send() is None
    world.settle()
    assert call.replies[0].items[0].status is DelStatus.MISSING


# ---- PUT --------------------------------------------------------------------------------------


def put(member: Member, value: bytes, ttl: float | None = None) -> tuple[str, SetStatus]:
    address = content.address(content.digest("bytes", value))
    return address, member.set(address, value, ttl=ttl).status


def test_a_put_of_an_address_that_is_bound_commits_the_later_deadline() -> None:
    world = World()
    a, b = world.joined("a", "b")
    key, status = put(a, b"v", 5.0)
    assert status is STORED
    b.get(key)
    assert put(b, b"v", TTL) == (key, OCCUPIED), "though b holds the value, Global is asked"
    assert a.ttl(key) == (True, TTL)
    assert put(b, b"v", 1.0) == (key, OCCUPIED)
    assert a.ttl(key) == (True, TTL), "it never becomes earlier"
    assert put(a, b"v") == (key, OCCUPIED)
    assert a.ttl(key) == (True, None), "none is the latest"
    put(a, b"v", 1.0)
    assert a.ttl(key) == (True, None)
    world.live(2 * TTL)
    assert a.get(key) == b"v"


def test_a_set_of_another_key_that_is_occupied_leaves_its_deadline() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v", ttl=5.0)
    assert b.set("k", b"w", ttl=TTL).status is OCCUPIED
    assert a.ttl("k") == (True, 5.0)


def test_a_put_is_answered_when_the_later_deadline_is_durable() -> None:
    world = World(durable=True)
    a, b = world.joined("a", "b")
    address = content.address(content.digest("bytes", b"v"))
    a.begin_set((address, b"v"), ttl=5.0).send()
    (bind,) = world.commit()
    assert bind.deadline == WALL + world.now + 5.0
    call = b.begin_set((address, b"v"))
    assert call.send() is None
    assert a.ttl(address) == (True, 5.0)
    assert bind.stored is not None
    token = bind.stored.token
    assert world.commit() == [Change(ChangeKind.DEADLINE, address, token, None, NO_DEADLINE)]
    assert call.replies[0].items[0].status is OCCUPIED
    assert a.ttl(address) == (True, None)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Outcome.FULL, SetStatus.FULL), (Outcome.FAILED, SetStatus.FAILED)],
)
def test_a_put_whose_deadline_the_disk_refuses_fails(outcome: Outcome, status: SetStatus) -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    address = content.address(content.digest("bytes", b"v"))
    a.begin_set((address, b"v"), ttl=5.0).send()
    world.commit()
    call = a.begin_set((address, b"v"), ttl=TTL)
    call.send()
    world.commit(outcome)
    assert call.replies[0].items[0].status is status
    assert a.ttl(address) == (True, 5.0)
