"""Changes that have to be durable first: what is answered when, and what a crash can take back."""

from __future__ import annotations

import pytest

from dstore.core.authority.changes import BIND_BYTES
from dstore.core.authority.writes import PASSED
from dstore.core.engine import Change, ChangeKind, Outcome
from dstore.core.local.operations import scan
from dstore.protocol.messages import DelStatus, SetStatus
from tests.unit.core.world import Call, Member, World, body


@pytest.fixture
def world() -> World:
    return World(durable=True)


def committed(world: World, *outcomes: Outcome) -> list[tuple[ChangeKind, str]]:
    return [(change.kind, change.key) for change in world.commit(*outcomes)]


def asked(call: Call) -> Call:
    """Send the request of a call, which is not answered yet."""
    assert call.send() is None
    return call


def answered(call: Call) -> Call:
    call.answer()
    assert call.done
    return call


def bound_keys(a: Member) -> list[str]:
    now = a.world.now
    keys: list[str] = a.begin(scan(a.state, "", "", 10, now, now + 5)).finish().keys
    return keys


def bind(world: World, a: Member, key: str, value: bytes = b"v") -> None:
    """Set a key, durably."""
    setting = asked(a.begin_set((key, value)))
    world.commit()
    answered(setting)


@pytest.mark.at_once
def test_no_answer_shows_a_value_that_is_not_durable(world: World) -> None:
    a, b, c = world.joined("a", "b", "c")
    setting = asked(a.begin_set(("k", b"mine")))
    waiting = asked(b.begin_wait("k", world.now + 5))
    assert b.get("k") is None
    assert bound_keys(b) == []
    world.deliver(setting.route, setting.message)
    assert not setting.replies, "nor does the answer to a repeat"
    again = asked(b.begin_set(("k", b"theirs")))
    deleting = asked(c.begin_delete("k"))
    assert not world.state.idle

    assert committed(world) == [(ChangeKind.BIND, "k")]
    assert answered(setting).result["k"].status is SetStatus.STORED
    assert body(answered(waiting).result) == b"mine"
    assert answered(again).result["k"].status is SetStatus.OCCUPIED
    assert not deleting.replies, "its holders have yet to acknowledge"
    world.settle()
    assert committed(world) == [(ChangeKind.REMOVE, "k")]
    assert answered(deleting).result["k"].status is DelStatus.DELETED
    assert world.state.idle


def test_no_answer_shows_a_deletion_that_is_not_durable(world: World) -> None:
    a, b = world.joined("a", "b")
    bind(world, a, "k")
    world.settle()
    deleting = asked(a.begin_delete("k"))
    world.settle()
    assert b.get("k") == b"v"
    assert "k" not in b.state.entries, "it may go at any moment"
    assert bound_keys(b) == ["k"]
    joining = asked(b.begin_delete("k"))
    setting = asked(b.begin_set(("k", b"new")))

    assert committed(world) == [(ChangeKind.REMOVE, "k")]
    assert answered(deleting).result["k"].status is DelStatus.DELETED
    assert answered(joining).result["k"].status is DelStatus.MISSING
    assert b.get("k") is None
    assert committed(world) == [(ChangeKind.BIND, "k")]
    assert answered(setting).result["k"].status is SetStatus.STORED


def test_nothing_is_removed_or_replaced_on_the_disk_before_the_holders_have_acknowledged(
    world: World,
) -> None:
    a, b = world.joined("a", "b")
    for key in ("k", "l"):
        bind(world, a, key)
        assert b.get(key) == b"v"
    asked(a.begin_delete("k"))
    asked(a.begin_set(("l", b"new"), replace=True))
    assert not world.batches
    world.settle()
    changes = [each for _ in range(len(world.batches)) for each in committed(world)]
    assert sorted(changes) == [(ChangeKind.REPLACE, "l"), (ChangeKind.REMOVE, "k")]


def test_a_replacement_shows_the_old_value_until_the_new_one_is_durable(world: World) -> None:
    a, b = world.joined("a", "b")
    bind(world, a, "k", b"old")
    replacing = asked(a.begin_set(("k", b"new"), replace=True))
    world.settle()
    assert b.get("k") == b"old"
    committed(world)
    assert answered(replacing).result["k"].status is SetStatus.REPLACED
    assert b.get("k") == b"new"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Outcome.FULL, SetStatus.FULL), (Outcome.FAILED, SetStatus.FAILED)],
)
def test_what_the_disk_refuses_has_not_happened(
    outcome: Outcome, status: SetStatus, world: World
) -> None:
    a, b = world.joined("a", "b")
    setting = asked(a.begin_set(("k", b"v")))
    queued = asked(b.begin_set(("k", b"w")))
    world.commit(outcome)
    assert answered(setting).result["k"].status is status
    assert a.get("k") is None
    world.commit()
    assert answered(queued).result["k"].status is SetStatus.STORED

    replacing = asked(a.begin_set(("k", b"x"), replace=True))
    world.settle()
    world.commit(outcome)
    assert answered(replacing).result["k"].status is status
    deleting = asked(a.begin_delete("k"))
    world.settle()
    world.commit(outcome)
    assert answered(deleting).result["k"].status is DelStatus.FAILED
    assert a.get("k") == b"w"


def test_a_deletion_that_is_not_waited_for_is_answered_when_it_survives_a_crash(
    world: World,
) -> None:
    a, b = world.joined("a", "b")
    bind(world, a, "k")
    assert b.get("k") == b"v"
    deleting = asked(a.begin_delete("k", wait=False))
    also = asked(b.begin_delete("k", wait=False))
    for call in (deleting, also):
        (change,) = world.commit()
        assert (change.kind, change.deadline) == (ChangeKind.DEADLINE, 0.0)
        assert answered(call).result["k"].status is DelStatus.PENDING
    assert b.get("k") == b"v"
    world.settle()
    assert committed(world) == [(ChangeKind.REMOVE, "k")]
    assert b.get("k") is None


@pytest.mark.parametrize("holders", [True, False])
def test_a_deletion_of_which_no_intent_can_be_kept_is_waited_for(
    holders: bool, world: World
) -> None:
    a, b = world.joined("a", "b")
    world.engine_holds("k")
    if holders:
        assert b.get("k") == b"v"
    deleting = asked(a.begin_delete("k", wait=False))
    if holders:
        world.commit(Outcome.FAILED)
        assert not deleting.replies
        world.settle()
        world.commit()
        assert answered(deleting).result["k"].status is DelStatus.DELETED
    else:
        world.commit(Outcome.FAILED, Outcome.FAILED)
        assert answered(deleting).result["k"].status is DelStatus.FAILED
        assert b.get("k") == b"v"


def test_a_del_that_comes_when_the_removal_is_on_its_way_joins_it(world: World) -> None:
    (a,) = world.joined("a")
    world.engine_holds("k")
    deleting = asked(a.begin_delete("k"))
    also = asked(a.begin_delete("k", wait=False))
    assert committed(world) == [(ChangeKind.REMOVE, "k")]
    assert answered(deleting).result["k"].status is DelStatus.DELETED
    assert answered(also).result["k"].status is DelStatus.MISSING


def test_in_the_quiet_period_values_are_read_and_bound_and_none_is_removed_or_replaced() -> None:
    world = World(durable=True, quiet=1.0)
    (a,) = world.joined("a")
    world.engine_holds("k", "l")
    bind(world, a, "new")
    assert a.get("k") == b"v"
    asked(a.begin_delete("k"))
    asked(a.begin_set(("l", b"w"), replace=True))
    world.settle()
    assert not world.batches
    world.advance(0.99)
    world.settle()
    assert not world.batches
    assert world.state.wake_at <= world.quiet_until
    world.advance(0.02)
    world.settle()
    assert len(committed(world)) == 2


def test_a_deletion_that_a_former_life_has_begun_goes_on_after_the_quiet_period() -> None:
    world = World(durable=True, quiet=1.0)
    world.engine_holds("k", "l")
    stored = world.engine.read("k")
    assert stored is not None
    kept = [("k", stored.token, PASSED), ("gone", bytes(16), PASSED)]
    world.state.recover(kept, world.now)
    (a,) = world.joined("a")
    assert a.get("k") == b"v"
    assert "k" not in a.state.entries
    assert not world.batches
    world.advance(1.01)
    world.settle()
    assert committed(world) == [(ChangeKind.REMOVE, "k")]
    assert (a.get("k"), a.get("l")) == (None, b"v")
    assert world.state._sessions.writes.taken == 0


def test_the_changes_of_one_message_travel_as_one_batch(world: World) -> None:
    (a,) = world.joined("a")
    setting = asked(a.begin_set(*((f"k{number}", b"v") for number in range(5))))
    assert len(world.batches) == 1
    assert len(world.commit()) == 5
    answered(setting)


def test_a_writer_that_left_before_its_value_was_durable_is_no_holder(world: World) -> None:
    a, b = world.joined("a", "b")
    setting = asked(a.begin_set(("k", b"v")))
    a.state.goodbye(world.now)
    world.settle()
    world.commit()
    setting.give_up()
    assert b.get("k") == b"v"
    asked(b.begin_delete("k"))
    world.settle()
    assert committed(world) == [(ChangeKind.REMOVE, "k")], "only its reader is waited for"


def test_values_that_are_being_bound_count_in_the_memory_limit() -> None:
    world = World(durable=True, limit=3 * BIND_BYTES)
    (a,) = world.joined("a")
    settings = [asked(a.begin_set((f"k{number}", b"v"))) for number in range(2)]
    refused = a.begin_set(("k2", b"v"))
    assert refused.send() is not None
    assert answered(refused).result["k2"].status is SetStatus.FULL
    for setting in settings:
        world.commit()
        assert answered(setting).result.popitem()[1].status is SetStatus.STORED
    assert world.state._changes.bytes == 0


def test_a_change_that_is_durable_and_cannot_be_applied_is_no_outcome(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and disk would differ: the host has to end this Global."""
    from dstore.errors import StoreFull

    def full(*_: object) -> None:
        raise StoreFull("no room")

    (a,) = world.joined("a")
    asked(a.begin_set(("k", b"v")))
    monkeypatch.setattr(world.engine, "bind", full)
    with pytest.raises(StoreFull):
        world.commit()


def test_without_a_disk_all_is_done_at_once() -> None:
    world = World()
    (a,) = world.joined("a")
    assert a.begin_set(("k", b"v")).finish()["k"].status is SetStatus.STORED
    assert a.begin_delete("k").finish()["k"].status is DelStatus.DELETED
    assert not world.batches
    assert Change(ChangeKind.BIND, "k").deadline == float("inf")
