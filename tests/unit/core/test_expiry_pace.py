"""Many keys that expire: at which pace, and how much memory their deadlines take."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from dstore.core.authority.deadlines import (
    PENDING_MANY,
    SLOW_PAUSE,
    STEP_KEYS,
    STEP_PAUSE,
    Deadlines,
    deadline_bytes,
)
from dstore.core.authority.effects import Alarm
from dstore.core.authority.writes import COMMITS_MAX
from dstore.protocol.messages import ExpireStatus, SetStatus
from tests.unit.core.expiry import STORED, TTL, bound
from tests.unit.core.world import LEASE, Member, World

# ---- pace -------------------------------------------------------------------------------------


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


# ---- memory -----------------------------------------------------------------------------------


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
