"""When invalidations that no deletion waits for are broadcast, and what a late one must not do."""

from __future__ import annotations

import pytest

from dstore.core.authority.broadcasts import KEYS_MAX, PAUSE, PAUSE_MAX, PAUSE_PER_LOCAL
from dstore.protocol.messages import Broadcast, Committed, DelStatus, Large, Stored
from tests.unit.core.world import Member, World


def unheld(*keys: str, log_length: int = 100) -> tuple[World, Member, Member]:
    """A World with keys that none of its two Locals holds."""
    world = World(log_length=log_length)
    world.engine_holds(*keys)
    a, b = world.joined("a", "b")
    world.renew(a, b)
    return world, a, b


def broadcasts(member: Member) -> list[tuple[int, list[str]]]:
    """What lies in its queue: first numbers and keys."""
    assert all(isinstance(each, Broadcast) for each in member.published)
    return [(each.first, each.keys) for each in member.published if isinstance(each, Broadcast)]


def delete(member: Member, *keys: str) -> None:
    """Delete these keys while no other message moves."""
    call = member.begin_delete(*keys)
    call.send()
    call.answer()
    assert {result.status for result in call.result.values()} == {DelStatus.DELETED}


def test_invalidations_without_holders_are_broadcast_with_pauses() -> None:
    world, a, b = unheld("i", "j", "k", "l")
    delete(b, "i")
    assert world.state.wake_at == world.now + PAUSE
    delete(b, "j")
    assert broadcasts(a) == []
    world.advance(PAUSE)
    world.tick()
    assert broadcasts(a) == [(1, ["i", "j"])]
    delete(b, "k")
    assert world.state.wake_at == world.now + PAUSE + 2 * PAUSE_PER_LOCAL
    world.advance(PAUSE)
    delete(b, "l")
    assert world.state.wake_at == world.now + 2 * PAUSE_PER_LOCAL
    world.publish()
    assert broadcasts(a)[1:] == [(3, ["k", "l"])]
    assert world.state.wake_at > world.now + 1


def test_a_broadcast_for_many_holders_has_all_that_was_kept_before_it() -> None:
    _world, a, b = unheld("i", "j", "k", "held")
    a.get("held")
    b.get("held")
    delete(b, "i")
    delete(b, "j")
    deletion = b.begin_delete("held")
    deletion.send()
    assert broadcasts(a) == [(1, ["i", "j", "held"])]
    a.turn()
    b.turn()
    assert a.state.applied == 3
    assert deletion.replies
    delete(b, "k")
    assert broadcasts(a) == []


def test_many_are_not_kept_back() -> None:
    keys = [f"k{number}" for number in range(KEYS_MAX)]
    _world, a, b = unheld(*keys, log_length=2 * KEYS_MAX)
    delete(b, *keys[1:])
    assert broadcasts(a) == []
    delete(b, keys[0])
    assert broadcasts(a) == [(1, [*keys[1:], keys[0]])]


def test_no_more_are_kept_than_the_log_has_so_that_no_cache_is_dropped() -> None:
    keys = [f"k{number}" for number in range(4)]
    world, a, b = unheld("held", *keys, log_length=3)
    a.get("held")
    for key in keys:
        delete(b, key)
        a.state.renew(world.now)
        a.turn()
        a.turn()
    assert broadcasts(b) == [(1, keys[:3])]
    assert a.state.counters["flushes"] == 0
    assert a.state.applied == 4
    assert a.hit("held") == b"v"


def test_a_renewal_with_invalidations_that_no_deletion_waits_for_needs_no_acknowledgement() -> None:
    world, a, b = unheld("k")
    delete(b, "k")
    a.state.renew(world.now)
    a.turn()
    answer = a.listen()
    assert (answer.keys, answer.acknowledge) == (["k"], False)
    assert a.state.applied == 1
    assert a.tick() == []


def test_an_early_one_is_not_put_off_by_what_comes_after_it() -> None:
    world, a, b = unheld("i", "j")
    delete(b, "i")
    due = world.state.wake_at
    world.advance(PAUSE / 2)
    delete(b, "j")
    assert world.state.wake_at == due
    world.advance(PAUSE / 2)
    world.tick()
    assert broadcasts(a) == [(1, ["i", "j"])]


def test_after_a_broadcast_for_many_holders_there_is_a_pause_too() -> None:
    world, a, b = unheld("held", "k")
    a.get("held")
    b.get("held")
    b.begin_delete("held").send()
    delete(b, "k")
    assert world.state._invalidations.broadcasts.wake_at == world.now + PAUSE + 2 * PAUSE_PER_LOCAL


def test_the_pause_grows_with_the_locals_but_not_without_end() -> None:
    world, _a, b = unheld("i", "j", "k", "l")
    world.joined(*(f"other {number}" for number in range(200)))
    delete(b, "i")
    world.publish()
    delete(b, "j")
    assert abs(world.state.wake_at - (world.now + PAUSE + 202 * PAUSE_PER_LOCAL)) < 1e-9
    world.joined(*(f"further {number}" for number in range(2000)))
    world.publish()
    delete(b, "k")
    assert world.state._invalidations.broadcasts.wake_at == world.now + PAUSE_MAX


def test_a_global_that_ends_broadcasts_all_at_once() -> None:
    world, a, b = unheld("i")
    assert world.state.idle
    delete(b, "i")
    assert not world.state.idle
    world.state.close()
    world.tick()
    assert broadcasts(a) == [(1, ["i"])]
    assert world.state.idle


def test_watchers_learn_of_a_commit_after_the_broadcast_of_the_deletion() -> None:
    world, a, b = unheld("i", "j")
    a.state.watch(1, world.now)
    world.settle()
    a.told.clear()
    delete(b, "i")
    delete(b, "j")
    assert not a.published
    world.publish()
    assert [type(each) for each in a.published] == [Broadcast, Committed]
    a.turn()
    assert a.told == [(0, "i"), (0, "j")]


def test_a_value_bound_after_a_deletion_survives_its_late_broadcast() -> None:
    world, a, b = unheld("i", "k")
    delete(b, "i")
    delete(b, "k")
    setting = b.begin_set(("k", b"new"))
    setting.send()
    setting.answer()
    reading = a.begin_get("k")
    reading.send()
    reading.answer()
    world.publish()
    world.settle()
    assert (a.state.applied, b.state.applied) == (2, 2)
    assert (a.hit("k"), b.hit("k")) == (b"new", b"new")
    assert (a.dropped, b.dropped) == ([], [])
    assert a.delete("k").confirmed == 2
    assert (a.hit("k"), b.hit("k")) == (None, None)


@pytest.mark.at_once
def test_late_invalidations_forbid_fills_and_reach_watchers_also_if_the_entry_stays() -> None:
    world, a, b = unheld("k")
    a.state.watch(1, world.now)
    world.settle()
    a.told.clear()
    early = a.begin_get("k")
    early.send()
    deletion = b.begin_delete("k")
    deletion.send()
    a.control.clear()
    world.advance(world.lease)
    world.tick()
    assert deletion.replies
    later = b.begin_set(("k", b"new"))
    later.send()
    taken = a.begin_set(("k", b"mine"))
    taken.send()
    taken.answer()
    world.live(0.2)
    assert a.state.applied == 1
    assert a.told == [(0, "k")]
    early.answer()
    assert a.hit("k") == b"new"


@pytest.mark.at_once
def test_the_host_learns_of_the_former_entry_when_its_invalidation_comes() -> None:
    world, a, b = unheld("k")
    a.get("k")
    world.members.remove(a)
    world.advance(world.lease)
    world.settle()
    b.delete("k")
    b.set("k", b"new")
    taken = a.begin_set(("k", b"mine"))
    taken.send()
    taken.answer()
    assert a.dropped == []
    world.members.append(a)
    world.live(0.2)
    assert a.dropped == ["k"]
    assert a.hit("k") == b"new"


def test_a_broadcast_for_many_holders_names_large_values_too() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    stored = Stored(b"t" * 16, "bytes", Large(2000, b"d" * 32))
    world.engine.bind("k", stored)
    for member in (a, b):
        call = member.begin_get("k")
        call.send()
    c.begin_delete("k").send()
    broadcast = c.hear()
    assert isinstance(broadcast, Broadcast)
    assert (broadcast.acknowledge, broadcast.tokens) == (True, [stored.token])


def test_the_writer_of_a_replacement_keeps_its_new_value() -> None:
    world, a, b = unheld("k")
    replacing = b.begin_set(("k", b"new"), replace=True)
    replacing.send()
    replacing.answer()
    world.publish()
    assert b.published
    world.settle()
    assert b.hit("k") == b"new"
    assert a.hit("k") is None


@pytest.mark.at_once
def test_a_late_reply_that_is_older_than_the_entry_is_not_stored() -> None:
    world, a, b = unheld("k")
    early = a.begin_get("k")
    early.send()  # it brings the value that is deleted now
    deletion = b.begin_delete("k")
    deletion.send()
    # The deletion waits for ``a`` until its lease has run out.
    world.members.remove(a)
    world.advance(world.lease)
    world.settle()
    deletion.answer()
    b.begin_set(("k", b"new")).finish()
    late = a.begin_set(("k", b"mine"))  # a second GET would wait for the first
    late.send()
    late.answer()
    assert a.state.entries["k"].seq == 1
    early.answer()
    assert a.state.entries["k"].seq == 1, "the newer value stays"
    world.members.append(a)
    world.live(0.2)
    assert a.state.applied == 1
    assert a.hit("k") == b"new"
