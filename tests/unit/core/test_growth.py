"""What one event costs Global does not grow with what does not concern it. Steps are counted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from dstore.core.authority import acknowledgements, broadcasts
from dstore.core.authority.acknowledgements import (
    REMIND_AFTER,
    REMIND_AFTER_PER_HOLDER,
    REMIND_AFTER_PER_LOCAL,
)
from dstore.protocol.messages import Ack
from tests.unit.core.world import Member, World

FEW, MANY = 4, 200


def steps(work: Callable[[], object]) -> int:
    """How many lines of Python it takes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event in ("line", "call")
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(former)
    return count


def pending_key(holders: int) -> tuple[World, Member]:
    """A deletion that waits for this many holders, and the oldest of them."""
    world = World()
    members = world.joined(*(f"m{number}" for number in range(holders)))
    members[0].set("l", b"v")
    members[0].set("k", b"v")
    for member in members:
        member.get("k")
    members[0].begin_delete("k").send()
    return world, members[0]


def steps_of_an_ack(holders: int) -> int:
    world, member = pending_key(holders)
    ack = Ack(world.epoch, member.state._secret, 1)
    return steps(lambda: world.deliver(member.route, ack))


def test_an_acknowledgement_does_not_look_at_the_others_that_are_awaited() -> None:
    assert steps_of_an_ack(MANY) == steps_of_an_ack(FEW)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are reminded at the same moment, however many they are, and nothing is broadcast."""
    monkeypatch.setattr(acknowledgements, "REMIND_AFTER_PER_LOCAL", 0.0)
    monkeypatch.setattr(acknowledgements, "REMIND_AFTER_PER_HOLDER", 0.0)
    monkeypatch.setattr(broadcasts, "PAUSE", 1.0)


def steps_when_one_is_late(holders: int) -> int:
    """One has acknowledged another deletion a moment ago, and is late after all others."""
    world, member = pending_key(holders)
    world.advance(REMIND_AFTER / 2)
    member.begin_delete("l").send()
    world.deliver(member.route, Ack(world.epoch, member.state._secret, 1))
    world.advance(REMIND_AFTER / 2)
    world.tick()  # the others are reminded; this one is looked at too early
    assert world.state.counters["reminders"] == holders - 1
    world.advance(0.6 * REMIND_AFTER)
    assert world.now >= world.state.wake_at
    return steps(world.tick)


@pytest.mark.usefixtures("impatient")
def test_a_late_holder_is_found_without_a_look_at_the_others() -> None:
    few, many = steps_when_one_is_late(FEW), steps_when_one_is_late(MANY)
    assert abs(many - few) <= 10, "a heap that is a little higher"


@pytest.mark.usefixtures("impatient")
def test_a_holder_is_reminded_and_expires_in_time_though_moments_are_looked_up() -> None:
    world, member = pending_key(FEW)
    world.advance(REMIND_AFTER)
    world.tick()
    assert world.state.counters["reminders"] == FEW
    assert world.state.wake_at == world.now + 2 * REMIND_AFTER
    world.advance(2 * REMIND_AFTER)
    world.tick()
    assert world.state.counters["reminders"] == 2 * FEW
    world.deliver(member.route, Ack(world.epoch, member.state._secret, 1))
    world.advance(world.lease)
    world.tick()
    assert not world.state._invalidations.pending
    assert world.state._invalidations.acknowledgements.expired == FEW - 1


def test_the_more_have_to_acknowledge_the_later_they_are_reminded() -> None:
    world, _ = pending_key(MANY)
    world.advance(REMIND_AFTER + MANY * REMIND_AFTER_PER_LOCAL - 1e-6)
    world.tick()
    assert world.state.counters["reminders"] == 0
    world.advance(REMIND_AFTER_PER_HOLDER * (MANY / 2 + 1))
    world.tick()
    assert abs(world.state.counters["reminders"] - MANY // 2) <= 2, "one after the other"
    world.advance(REMIND_AFTER_PER_HOLDER * (MANY / 2 + 1))
    world.tick()
    assert world.state.counters["reminders"] == MANY
