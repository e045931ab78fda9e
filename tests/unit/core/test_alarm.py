"""The next tick comes in time for everything that is scheduled, and nothing is asked in between."""

from __future__ import annotations

import pytest

from dstore.core.authority.acknowledgements import Acknowledgements
from dstore.core.authority.broadcasts import PAUSE, Broadcasts
from dstore.core.authority.effects import NEVER, Alarm
from dstore.core.authority.holders import SWEEP_AT
from dstore.core.authority.reads import Waits
from dstore.core.authority.stages import STAGE_IDLE, Stages
from dstore.protocol import content
from dstore.protocol.messages import Ack, Del, Goodbye, Large, Set, Stage, Stored, Sync, Wait
from tests.unit.core.world import Member, World, item

LEASE = 1_000.0
"""A long lease, so that no tick comes for another reason."""


def joined(*names: str) -> tuple[World, list[Member]]:
    world = World(lease=LEASE)
    members = world.joined(*names)
    assert world.state.wake_at >= world.now + LEASE
    return world, members


def own(member: Member) -> tuple[int, int]:
    return member.state.epoch, member.state.session


def owner(member: Member) -> tuple[int, int]:
    return member.state.epoch, member.state._secret


def test_an_alarm_is_only_brought_forward() -> None:
    alarm = Alarm()
    assert alarm.moment == NEVER
    for moment, expected in ((5.0, 5.0), (7.0, 5.0), (2.0, 2.0)):
        alarm.at(moment)
        assert alarm.moment == expected


def test_without_sessions_there_is_nothing_to_do() -> None:
    world = World()
    assert world.state.wake_at == NEVER
    world.tick()
    assert world.state.wake_at == NEVER


def test_a_wait_is_answered_in_time() -> None:
    world, (a,) = joined("a")
    world.deliver(b"x", Wait(*own(a), 1, "k", 3.0))
    assert world.state.wake_at == world.now + 3.0


def test_an_upload_is_dropped_in_time() -> None:
    world, (a,) = joined("a")
    stored = Stored(bytes(16), "bytes", Large(8, content.digest("bytes", b"12345678")))
    world.deliver(b"x", Stage(*own(a), 1, stored, 0, b"1234"))
    assert world.state.wake_at == world.now + STAGE_IDLE
    world.advance(STAGE_IDLE)
    world.tick()
    assert len(world.state._stages) == 0


def test_an_invalidation_is_broadcast_in_time() -> None:
    world, (a,) = joined("a")
    world.engine_holds("k")
    world.deliver(b"x", Del(*own(a), 1, 1, 0, True, ["k"]))
    assert world.state.wake_at == world.now + PAUSE


def test_a_key_that_a_queued_set_binds_is_answered_at_once() -> None:
    """The SET is executed in the event that commits the deletion, not in one of its own."""
    world, (a, b, c) = joined("a", "b", "c")
    world.engine_holds("k")
    a.get("k")
    world.deliver(b"x", Del(*own(b), 1, 1, 0, True, ["k"]))
    world.deliver(b"x", Set(*own(b), 2, 2, 0, False, [item(world, "k", b"new")]))
    world.state._waits.add(  # as if the key had been missing
        session := world.state._sessions.get(c.state.session),
        b"waiting",
        Wait(*own(c), 3, "k", 50.0),
        world.now,
    )
    assert session is not None
    world.deliver(a.route, Ack(*owner(a), 1))
    assert world.state.wake_at <= world.now
    world.tick()
    (reply,) = world.inboxes[b"waiting"]
    assert reply.items[0].stored.body == b"new"  # type: ignore[union-attr]


def test_a_sweep_of_holder_bits_goes_on_at_once() -> None:
    world, members = joined(*(f"m{number}" for number in range(SWEEP_AT + 1)))
    world.engine_holds("k")
    members[0].get("k")
    for member in members[1:]:
        assert world.state.wake_at > world.now
        world.deliver(b"x", Goodbye(*owner(member)))
    assert world.state.wake_at <= world.now
    world.tick()
    assert world.state.wake_at > world.now


def test_a_message_asks_no_part_when_it_is_next_due(monkeypatch: pytest.MonkeyPatch) -> None:
    world, (a, b) = joined("a", "b")
    world.engine_holds("k", "l")
    a.get("k")

    def asked(part: object) -> float:
        raise AssertionError(f"{part!r} was asked")

    for part in (Acknowledgements, Stages, Waits):
        monkeypatch.setattr(part, "wake_at", property(asked))
    world.deliver(b"x", Sync(*owner(a), 1, 0, 0))
    world.deliver(b"x", Ack(*owner(a), 0))
    world.deliver(b"x", Del(*own(b), 1, 1, 0, True, ["k", "l"]))
    world.deliver(b"x", Ack(*owner(a), 2))
    assert world.state.idle is False
    monkeypatch.setattr(Broadcasts, "wake_at", property(asked))
    world.deliver(b"x", Set(*own(b), 2, 2, 0, False, [item(world, "m", b"v")]))
