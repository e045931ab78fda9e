"""Deadlines on the disk: what is answered when, what a failing disk changes, and recovery."""

from __future__ import annotations

import pytest

from dstore.core.authority.deadlines import RETRY_PAUSE, SLOW_PAUSE, STEP_KEYS, STEP_PAUSE
from dstore.core.authority.writes import COMMITS_MAX, PASSED
from dstore.core.engine import NO_DEADLINE, ChangeKind, Outcome
from dstore.errors import DstoreError
from dstore.protocol.messages import DelStatus, ExpireStatus
from tests.unit.core.expiry import OCCUPIED, STORED, TTL, bound
from tests.unit.core.world import LEASE, WALL, World

# ---- durability -------------------------------------------------------------------------------


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


# ---- recovery ---------------------------------------------------------------------------------


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
