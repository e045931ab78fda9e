"""Holders: who is waited for, and how the bits that say so are kept."""

from __future__ import annotations

import random
import sys

import pytest

from dstore.core.authority.holders import PART_BITS, SWEEP_AT, Holders, bits_of
from dstore.protocol.messages import Ack, Broadcast, Synced
from tests.unit.core.world import LEASE, Call, Member, World


def test_a_reader_is_a_holder() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    world.members.remove(a)
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert not deletion.replies


def test_a_writer_is_a_holder() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v")
    deletion = b.begin_delete("k")
    deletion.send()
    assert not deletion.replies
    assert a.hit("k") == b"v"
    world.settle()
    assert deletion.replies


@pytest.mark.at_once
def test_a_writer_that_got_the_occupying_value_is_a_holder() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    c.set("k", b"v")
    outcome = a.set("k", b"w")
    assert outcome.updated
    assert a.hit("k") == b"v"
    world.members.remove(a)
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    c.turn()
    assert not deletion.replies


def test_the_writer_of_a_replacement_is_a_holder_of_the_new_value() -> None:
    world = World()
    a, b = world.joined("a", "b")
    a.set("k", b"v")
    a.set("k", b"w", replace=True)
    assert a.hit("k") == b"w"
    deletion = b.begin_delete("k")
    deletion.send()
    assert not deletion.replies


def test_a_deletion_waits_for_the_holders_alone() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    b.set("k", b"v")
    world.members.remove(a)
    world.members.remove(c)
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert deletion.replies


def test_few_holders_get_targeted_invalidations_and_other_locals_none_yet() -> None:
    world = World()
    a, b, c, _d, e = world.joined("a", "b", "c", "d", "e")
    for key in ("unheld", "k"):
        e.set(key, b"v")
    a.get("k")
    b.get("k")
    e.state.goodbye(world.now)
    world.settle()
    world.members.remove(e)
    c.begin_delete("unheld").send()
    deletion = c.begin_delete("k")
    deletion.send()
    for member in (a, b):
        targeted = member.listen()
        assert isinstance(targeted, Synced)
        assert (targeted.serial, targeted.after, targeted.keys) == (0, 0, ["unheld", "k"])
        assert targeted.acknowledge
    assert not any(member.published or member.control for member in world.members)
    assert (a.hit("k"), b.hit("k")) == (None, None)
    for member in (a, b):
        assert not deletion.replies
        (ack,) = member.tick()
        assert isinstance(ack, Ack)
        member.send()
    assert deletion.replies
    world.publish()
    broadcast = c.hear()
    assert isinstance(broadcast, Broadcast)
    assert not broadcast.acknowledge
    assert c.tick() == []
    assert c.state.applied == 2


def test_many_holders_are_notified_by_one_broadcast_and_all_acknowledge() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    assert not any(member.control for member in world.members)
    broadcast = c.hear()
    assert isinstance(broadcast, Broadcast)
    assert broadcast.acknowledge
    a.hear()
    assert [type(message) for message in (*a.tick(), *c.tick())] == [Ack, Ack]
    a.send()
    b.turn()
    assert deletion.replies
    assert not any(member.control for member in world.members), "nobody is asked twice"


def test_one_targeted_invalidation_is_in_flight_and_the_next_has_what_started_meanwhile() -> None:
    world = World()
    a, b, _c = world.joined("a", "b", "c")
    for key in "jkl":
        a.set(key, b"v")
    deletions = [b.begin_delete(key) for key in "jkl"]
    for deletion in deletions:
        deletion.send()
    assert len(a.control) == 1
    a.turn()
    assert [len(deletion.replies) for deletion in deletions] == [1, 0, 0]
    (targeted,) = a.control
    assert isinstance(targeted, Synced)
    assert (targeted.serial, targeted.after, targeted.keys) == (0, 1, ["k", "l"])
    a.turn()
    assert all(deletion.replies for deletion in deletions)
    assert not a.control
    assert world.state.counters["reminders"] == 0


def with_a_lost_push() -> tuple[World, Member, list[Call]]:
    """Two deletions wait for one Local, which did not receive the invalidation of the first."""
    world = World()
    a, b = world.joined("a", "b")
    for key in "kl":
        a.set(key, b"v")
    deletions = [b.begin_delete(key) for key in "kl"]
    for deletion in deletions:
        deletion.send()
    a.control.clear()
    return world, a, deletions


def test_a_lost_targeted_invalidation_is_repeated_with_what_started_since() -> None:
    world, _a, deletions = with_a_lost_push()
    world.live(0.05)
    assert all(deletion.replies for deletion in deletions)
    assert world.state.counters["reminders"] == 1


def test_the_answer_to_a_renewal_counts_as_a_targeted_invalidation() -> None:
    world, a, deletions = with_a_lost_push()
    a.state.renew(world.now)
    a.tick()
    a.send()
    answer = a.listen()
    assert (answer.serial, answer.keys, answer.acknowledge) == (1, ["k", "l"], True)
    a.turn()
    assert all(deletion.replies for deletion in deletions)
    assert not a.control


def test_a_holder_that_the_log_does_not_reach_is_notified_by_a_broadcast() -> None:
    keys = [f"k{number}" for number in range(11)]
    world = World(log_length=10)
    a, b, c = world.joined("a", "b", "c")
    a.begin_set(*((key, b"v") for key in (*keys, "held"))).finish()
    a.state.goodbye(world.now)
    world.settle()
    b.get("held")
    c.begin_delete(*keys).send()
    deletion = c.begin_delete("held")
    deletion.send()
    assert not b.control
    b.turn()
    assert b.state.counters["flushes"] == 0
    assert (b.state.applied, b.hit("held")) == (12, None)
    assert deletion.replies


def test_a_missing_key_makes_no_holder() -> None:
    world = World()
    (a,) = world.joined("a")
    assert a.get("k") is None
    assert len(world.state._holders) == 0


def test_a_lapsed_session_keeps_its_bits() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.renew(a)
    b.set("k", b"v")
    a.get("k")
    world.members.remove(a)
    world.live(1.5 * LEASE)
    a.tick()
    a.send()  # it comes back with its cache
    a.listen()
    assert a.hit("k") == b"v"
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert not deletion.replies, "it is waited for again"


def test_a_lapsed_holder_is_not_waited_for_but_counted() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.renew(a)
    b.set("k", b"v")
    a.get("k")
    world.members.remove(a)
    world.live(1.5 * LEASE)
    assert b.delete("k").expired == 1


def test_a_bit_is_not_used_again_before_all_keys_have_lost_it() -> None:
    holders = Holders()
    bits = [holders.claim() for _ in range(SWEEP_AT)]
    for number, bit in enumerate(bits):
        holders.add(f"k{number}", bit)
    holders.add("shared", bits[0])
    keeper = holders.claim()
    holders.add("shared", keeper)
    for bit in bits:
        assert holders.claim() not in bits
        holders.retire(bit)
    assert holders.sweeping
    holders.sweep(SWEEP_AT // 2)
    assert holders.claim() not in bits
    holders.sweep(1000)
    assert not holders.sweeping
    assert all(not holders.of(f"k{number}") for number in range(SWEEP_AT))
    assert holders.of("shared") == 1 << keeper
    assert {holders.claim() for _ in bits} == set(bits)


def test_bits_of_a_mask() -> None:
    assert list(bits_of(0b10110)) == [1, 2, 4]


def test_bits_of_a_wide_mask() -> None:
    dice = random.Random(1)
    for width in (1, PART_BITS - 1, PART_BITS, PART_BITS + 1, 10 * PART_BITS):
        for share in (1, width // 50 + 1, width):
            bits = sorted(dice.sample(range(width), share))
            assert list(bits_of(sum(1 << bit for bit in bits))) == bits


def test_no_bit_takes_more_memory_than_the_first() -> None:
    holders = Holders()
    assert {sys.getsizeof(holders.claim()) for _ in range(1000)} <= {
        sys.getsizeof(n) for n in (0, 1)
    }


def test_a_thousand_joins_and_goodbyes_leave_no_session_and_few_bits() -> None:
    world = World()
    (keeper,) = world.joined("keeper")
    keeper.set("k", b"v")
    for number in range(1000):
        (member,) = world.joined(f"m{number}")
        member.get("k")
        member.state.goodbye(world.now)
        world.settle()
        world.members.remove(member)
    assert len(world.state._sessions) == 1
    assert world.state._holders.width <= 2 * SWEEP_AT + 2


def test_a_write_that_outlives_its_session_makes_no_holder() -> None:
    """Its bit may belong to another session by the time the write runs."""
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    deletion = b.begin_delete("k")
    deletion.send()
    setting = a.begin_set(("k", b"w"))
    setting.send()
    a.state.goodbye(world.now)
    a.tick()
    a.send()
    b.turn()
    assert deletion.replies
    (reply,) = setting.replies
    assert not reply.items[0].cacheable
    assert not len(world.state._holders)
