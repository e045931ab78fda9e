"""Keys with a time to live: a deletion in two phases that Global begins by itself."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from dstore.core.authority import deadlines
from dstore.core.authority.deadlines import (
    PENDING_MANY,
    RETRY_PAUSE,
    SLOW_PAUSE,
    STEP_KEYS,
    STEP_PAUSE,
    Deadlines,
    deadline_bytes,
)
from dstore.core.authority.effects import Alarm
from dstore.core.authority.writes import COMMITS_MAX, PASSED
from dstore.core.engine import NO_DEADLINE, Change, ChangeKind, Outcome
from dstore.errors import DstoreError
from dstore.protocol import content
from dstore.protocol.messages import (
    DelStatus,
    Expire,
    ExpireReply,
    ExpireStatus,
    Set,
    SetItem,
    SetReply,
    SetStatus,
    Stored,
)
from tests.unit.core.world import LEASE, WALL, Member, World

TTL = 10.0
OCCUPIED, STORED, REPLACED = SetStatus.OCCUPIED, SetStatus.STORED, SetStatus.REPLACED


def bound(world: World, key: str = "k") -> bool:
    return world.engine.read(key) is not None


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


# ---- EXPIRE, PERSIST, TTL ----------------------------------------------------------------------


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


# ---- what else is under way on the key ---------------------------------------------------------


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


# ---- PUT ---------------------------------------------------------------------------------------


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


# ---- durability --------------------------------------------------------------------------------


def test_the_deadline_is_on_the_disk_with_the_value() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v"), ttl=TTL).send()
    (bind,) = world.commit()
    assert (bind.kind, bind.deadline) == (ChangeKind.BIND, WALL + world.now + TTL)
    a.begin_set(("k", b"w"), replace=True, ttl=1.0).send()
    world.settle()
    (replacement,) = world.commit()
    assert replacement.kind is ChangeKind.REPLACE
    assert replacement.deadline == WALL + world.now + 1.0
    a.begin_set(("k", b"x"), replace=True).send()
    world.settle()
    (replacement,) = world.commit()
    assert replacement.deadline == NO_DEADLINE


def test_expire_is_answered_when_it_is_durable_and_shows_in_no_answer_before() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v")).send()
    world.commit()
    call = a.begin_expire("k", TTL)
    assert call.send() is None
    assert a.ttl("k") == (True, None)
    (change,) = world.commit()
    stored = world.engine.read("k")
    assert stored is not None
    assert change[:3] == (ChangeKind.DEADLINE, "k", stored.token)
    assert change.deadline == WALL + world.now + TTL
    assert call.replies[0].items == [ExpireStatus.DONE]
    assert a.ttl("k") == (True, TTL)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Outcome.FULL, ExpireStatus.FULL), (Outcome.FAILED, ExpireStatus.FAILED)],
)
def test_an_expire_that_the_disk_refuses_changes_nothing(
    outcome: Outcome, status: ExpireStatus
) -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v"), ttl=5.0).send()
    world.commit()
    call = a.begin_expire("k", TTL)
    call.send()
    world.commit(outcome)
    assert call.replies[0].items == [status]
    assert a.ttl("k") == (True, 5.0)


def test_a_key_whose_deadline_is_being_changed_is_busy() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v")).send()
    world.commit()
    a.begin_expire("k", TTL).send()
    calls = [
        a.begin_set(("k", b"w")),
        a.begin_expire("k", None),
        a.begin_delete("k"),
        a.begin_set(("k", b"x")),
    ]
    assert [call.send() for call in calls] == [None] * 4
    assert a.get("k") == b"v"
    assert [change.kind for change in world.commit()] == [ChangeKind.DEADLINE]
    world.settle()
    (persist,) = world.commit()
    assert (persist.kind, persist.deadline) == (ChangeKind.DEADLINE, NO_DEADLINE)
    world.settle()
    assert [change.kind for change in world.commit()] == [ChangeKind.REMOVE]
    world.settle()
    assert [change.kind for change in world.commit()] == [ChangeKind.BIND]
    outcomes = [call.replies[0].items[0] for call in calls]
    assert outcomes[0].status is OCCUPIED
    assert outcomes[1] is ExpireStatus.DONE
    assert outcomes[2].status is DelStatus.DELETED
    assert outcomes[3].status is STORED


def test_a_removal_that_fails_is_tried_again_later() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v"), ttl=1.0).send()
    world.commit()
    world.live(1.1)
    assert [change.kind for change in world.commit(Outcome.FAILED)] == [ChangeKind.REMOVE]
    world.live(RETRY_PAUSE - 0.1)
    assert bound(world)
    assert not world.batches
    world.live(0.2)
    assert [change.kind for change in world.commit()] == [ChangeKind.REMOVE]
    assert not bound(world)
    assert len(world.state._deadlines) == 0


def test_a_deletion_that_is_not_waited_for_is_tried_again_if_its_removal_fails() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v"), ttl=TTL).send()
    world.commit()
    deletion = a.begin_delete("k", wait=False)
    deletion.send()
    (change,) = world.commit()
    assert (change.kind, change.deadline) == (ChangeKind.DEADLINE, PASSED)
    assert deletion.replies[0].items[0].status is DelStatus.PENDING
    world.settle()
    world.commit(Outcome.FAILED)
    world.live(RETRY_PAUSE + 0.1)
    assert [change.kind for change in world.commit()] == [ChangeKind.REMOVE]
    assert not bound(world)


def test_a_set_behind_a_deletion_whose_removal_fails_begins_it_again() -> None:
    world = World(durable=True)
    (a,) = world.joined("a")
    a.begin_set(("k", b"v")).send()
    world.commit()
    a.begin_delete("k", wait=False).send()
    world.commit()
    world.settle()
    call = a.begin_set(("k", b"w"))
    assert call.send() is None
    world.commit(Outcome.FAILED)
    world.settle()
    assert [change.kind for change in world.commit()] == [ChangeKind.REMOVE]
    world.settle()
    assert [change.kind for change in world.commit()] == [ChangeKind.BIND]
    assert call.replies[0].items[0].status is STORED


def test_a_removal_that_the_engine_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1.0)

    def refuses(key: str, token: bytes) -> bool:
        raise DstoreError("the disk is away")

    with monkeypatch.context() as away:
        away.setattr(world.engine, "remove", refuses)
        world.live(1.1)
        assert bound(world)
    world.live(RETRY_PAUSE + 0.1)
    assert not bound(world)


def test_an_engine_that_breaks_loses_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    (a,) = world.joined("a")
    for key in ("k", "l", "m"):
        a.set(key, b"v", ttl=1.0)

    def breaks(key: str) -> None:
        raise RuntimeError("a bug")

    world.advance(1.1)
    with monkeypatch.context() as broken:
        broken.setattr(world.engine, "read", breaks)
        with pytest.raises(RuntimeError):
            world.tick()
    world.live(RETRY_PAUSE + 0.1)
    assert len(world.engine) == 0


# ---- recovery ----------------------------------------------------------------------------------


def restarted(world: World, quiet: float = 0.0) -> None:
    """A new life of Global, with the deadlines that the former one has left."""
    kept = [(key, token, at) for at, key, token in world.state._deadlines._records.values()]
    kept += [("gone", b"t" * 16, WALL), ("stays", b"t" * 16, NO_DEADLINE)]
    world.start_global()
    world.state._writes.quiet_until = world.now + quiet
    world.state.recover(kept, world.now)


def test_deadlines_survive_a_restart() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=5.0)
    a.set("l", b"v", ttl=TTL)
    restarted(world)
    (b,) = world.joined("b")
    assert b.ttl("k") == (True, 5.0)
    world.live(5.1)
    assert (b.get("k"), b.get("l")) == (None, b"v")
    world.live(5.0)
    assert b.get("l") is None
    assert len(world.state._deadlines) == 0


def test_what_has_passed_meanwhile_goes_after_the_quiet_period() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=1.0)
    world.advance(5.0)
    world.members.clear()
    restarted(world, quiet=LEASE)
    world.live(LEASE - 0.1)
    assert bound(world)
    world.live(0.2)
    assert not bound(world)


def test_many_that_have_passed_are_deleted_a_few_at_a_time() -> None:
    world = World(limit=1 << 24, log_length=2 * COMMITS_MAX)
    world.engine_holds(*(f"k{number:04}" for number in range(2 * COMMITS_MAX)))
    kept = []
    for key in world.engine.scan("", "", 10_000):
        stored = world.engine.read(key)
        assert stored is not None
        kept.append((key, stored.token, PASSED))
    world.state._writes.quiet_until = world.now + LEASE
    world.state.recover(kept, world.now)
    world.live(LEASE - 0.1, step=SLOW_PAUSE)
    assert len(world.state._invalidations.pending) == COMMITS_MAX, "half of the log"
    world.state._writes.quiet_until = 0.0
    left = []
    while len(world.engine):
        world.advance(STEP_PAUSE)
        before = len(world.engine)
        world.tick()
        left.append(before - len(world.engine))
    assert max(left) <= COMMITS_MAX + STEP_KEYS


# ---- pace --------------------------------------------------------------------------------------


def many(world: World, member: Member, count: int, ttl: float) -> None:
    for start in range(0, count, 1000):
        names = range(start, min(start + 1000, count))
        member.begin_set(*((f"k{number}", b"v") for number in names), ttl=ttl).finish()


def test_a_step_begins_a_bounded_number_of_expiries() -> None:
    world = World(limit=1 << 24, log_length=10_000)
    (a,) = world.joined("a")
    many(world, a, 3 * STEP_KEYS, 1.0)
    world.members.clear()
    world.advance(LEASE + 1.0)
    begun = []
    for _ in range(3):
        before = world.state._log.seq
        world.tick()
        begun.append(world.state._log.seq - before)
        world.advance(STEP_PAUSE)
    assert begun == [STEP_KEYS] * 3


def test_a_holder_that_has_died_slows_expiry_down_and_does_not_stop_it() -> None:
    world = World(limit=1 << 24, log_length=2_000, lease=100.0)
    a, b = world.joined("a", "b")
    many(world, a, 1_500, 1.0)
    b.set("other", b"v", ttl=1.1)
    world.members.remove(a)
    pending = world.state._invalidations.pending
    world.live(1.0 + 2 * PENDING_MANY / STEP_KEYS * STEP_PAUSE, step=STEP_PAUSE)
    assert PENDING_MANY <= len(pending) <= PENDING_MANY + 2 * STEP_KEYS
    assert bound(world, "other")
    world.live(3.0, step=SLOW_PAUSE)
    assert len(pending) == world.state._deadlines.pending_max == 1_000, "half of the log"
    world.members.append(a)
    world.live(10.0, step=SLOW_PAUSE)
    assert len(world.engine) == 0
    assert world.state._deadlines.pending == 0


def test_what_waited_for_one_lease_does_not_end_in_one_step() -> None:
    world = World(limit=1 << 24, log_length=10_000)
    (a,) = world.joined("a")
    many(world, a, 3 * COMMITS_MAX, 0.5)
    world.members.remove(a)
    world.live(LEASE - 0.1, step=SLOW_PAUSE)
    assert len(world.state._invalidations.pending) > 2 * COMMITS_MAX
    ended = []
    while len(world.engine):
        world.advance(STEP_PAUSE)
        before = len(world.engine)
        world.tick()
        ended.append(before - len(world.engine))
    assert COMMITS_MAX in ended
    assert max(ended) <= COMMITS_MAX + STEP_KEYS


def test_mass_expiry_leaves_locals_the_time_to_keep_up() -> None:
    """No broadcast arrives, and a Local that renews its lease in time drops no cache."""
    world = World(limit=1 << 24, log_length=2_000)
    a, b = world.joined("a", "b")
    b.set("stays", b"v")
    many(world, a, 3_500, 1.0)
    while len(world.engine) > 1:
        world.advance(STEP_PAUSE)
        for member in (a, b):
            member.published.clear()
        world.settle()
    assert world.state.counters["flushes"] == 0
    assert b.hit("stays") == b"v"


def test_keys_that_are_late_by_a_lease_are_not_held_up_by_the_log() -> None:
    world = World(limit=1 << 24, log_length=200)
    (a,) = world.joined("a")
    many(world, a, 2_000, 1.0)
    world.live(1.0 + LEASE + 1.0, step=2 * STEP_PAUSE)
    assert len(world.engine) == 0


# ---- memory ------------------------------------------------------------------------------------


def test_deadlines_count_against_the_memory_limit() -> None:
    world = World(limit=200_000)
    (a,) = world.joined("a")
    for number in itertools.count():
        status = a.set(f"k{number}", b"v", ttl=TTL).status
        if status is not STORED:
            break
    assert status is SetStatus.FULL
    deadlines_size = sum(deadline_bytes(f"k{each}") for each in range(number))
    assert world.state.metrics(world.now)["bytes"] == world.engine.size + deadlines_size
    assert world.engine.size < 200_000 * 2 / 3
    assert a.set("k", b"v").status is STORED, "without a deadline it fits"
    assert a.expire("k", 1.0) is ExpireStatus.FULL
    assert a.expire("k0", 1.0) is ExpireStatus.DONE, "it has one already"
    world.live(1.1)
    assert a.expire("k", 1.0) is ExpireStatus.DONE
    world.live(2 * TTL)
    assert world.state._deadlines.bytes == 0


@pytest.mark.parametrize("spread", [0.0, 1000.0])
def test_a_deadline_takes_no_more_memory_than_is_counted(spread: float) -> None:
    count = 30_000
    keys = [f"key/{number}" for number in range(count)]
    table = Deadlines(lambda: 0.0, 1000, LEASE, Alarm())
    tracemalloc.start()
    try:
        for number, key in enumerate(keys):
            # The key and the token of an EXPIRE are objects of their own.
            table.set(key + "", bytes(bytearray(16)), 1e9 + spread * (number % 997), 0.0)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == count
    assert taken < table.bytes
    for key in keys:
        table.drop(key)
    assert (table.bytes, len(table._waiting)) == (0, 0)


def test_each_key_has_one_place_in_order_however_often_its_deadline_changes() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v", ttl=TTL)
    for ttl in (5.0, 20.0, 1.0, 7.0) * 5:
        a.expire("k", ttl)
    table = world.state._deadlines
    assert (len(table), len(table._waiting)) == (1, 1)
    world.live(6.9)
    assert a.get("k") == b"v"
    world.live(0.2)
    assert a.get("k") is None


# ---- the wall clock ----------------------------------------------------------------------------


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


# ---- the end -----------------------------------------------------------------------------------


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
