"""Acknowledgements: cumulative, never too much, and not more of them than needed."""

from __future__ import annotations

import itertools

from dstore.core.local.entries import ACK_EVERY
from dstore.core.local.state import REORDER_KEYS_MAX
from dstore.protocol.messages import Ack, Broadcast, Refusal, Refused, Sync, Synced
from tests.unit.core.world import World


def test_an_acknowledgement_never_covers_a_gap() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    b.set("l", b"v")
    a.get("k")
    a.get("l")
    b.begin_delete("k").send()
    b.begin_delete("l").send()
    a.published.popleft()  # the deletion of k is lost
    a.hear()
    assert a.state.applied == 0
    messages = a.tick()
    assert not any(isinstance(message, Ack) for message in messages)
    (sync,) = messages
    assert isinstance(sync, Sync), "on a gap, repair first"
    assert sync.applied == 0
    a.send()
    a.listen()
    assert a.state.applied == 2
    assert a.hit("k") is None
    assert a.hit("l") is None
    (ack,) = a.tick()
    assert isinstance(ack, Ack)
    assert ack.applied == 2


def test_one_repair_at_a_time() -> None:
    world = World()
    (a,) = world.joined("a")
    world.advance(0.1)
    a.receive(Broadcast(world.epoch, 5, ["p"], True))
    assert len(a.tick()) == 1
    a.receive(Broadcast(world.epoch, 6, ["q"], True))
    a.receive(Broadcast(world.epoch, 7, ["r"], True))
    assert a.tick() == []


def test_what_comes_after_a_gap_waits_and_is_applied_after_the_repair() -> None:
    world = World()
    (a,) = world.joined("a")
    for key in ("one", "two", "three"):
        a.set(key, b"v")
    a.receive(Broadcast(world.epoch, 3, ["three"], True))
    assert a.hit("three") == b"v"
    a.receive(Synced(world.epoch, a.state.session, 0, 0, 2, ["one", "two"]))
    assert a.state.applied == 3
    assert len(a.state.cache) == 0


def test_a_second_gap_behind_the_first_is_repaired_too() -> None:
    world = World()
    (a,) = world.joined("a")
    a.receive(Broadcast(world.epoch, 3, ["c"], True))
    a.receive(Broadcast(world.epoch, 6, ["f"], True))
    world.advance(0.1)
    a.tick()
    a.receive(Synced(world.epoch, a.state.session, 0, 0, 2, ["a", "b"]))
    assert a.state.applied == 3
    world.advance(0.1)
    assert any(isinstance(message, Sync) for message in a.tick())


def test_the_buffer_of_what_waits_is_bounded() -> None:
    world = World()
    (a,) = world.joined("a")
    keys = ["k"] * 1000
    for number in range(2 * REORDER_KEYS_MAX // 1000):
        a.receive(Broadcast(world.epoch, 2 + 1000 * number, keys, False))
    assert a.state._reorder_keys <= REORDER_KEYS_MAX


def test_many_deletions_one_acknowledgement() -> None:
    world = World()
    a, b = world.joined("a", "b")
    for key in "klm":
        b.set(key, b"v")
        a.get(key)
    for key in "klm":
        b.begin_delete(key).send()
    for _ in "klm":
        a.hear()
    (ack,) = a.tick()
    assert isinstance(ack, Ack)
    assert ack.applied == 3


def test_a_broadcast_that_was_applied_before_is_acknowledged_again() -> None:
    """The renewal brought it first; Global still waits for the word of this holder."""
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    b.begin_delete("k").send()
    a.state.reconnected(world.now)
    a.tick()
    a.send()
    a.listen()
    a.tick()
    a.outgoing.clear()  # the acknowledgement is lost
    a.hear()
    assert [type(message) for message in a.tick()] == [Ack]


def test_an_acknowledgement_beyond_globals_number_is_refused() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    world.deliver(a.route, Ack(world.epoch, a.state._secret, 1))
    refused = a.control.pop()
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.BAD_MESSAGE
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert not deletion.replies, "the premature acknowledgement counts for nothing"


def test_a_sync_beyond_globals_number_renews_nothing() -> None:
    world = World()
    (a,) = world.joined("a")
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    lease_end = session.lease_end
    world.advance(1.0)
    world.deliver(a.route, Sync(world.epoch, a.state._secret, 1, 5, 0))
    assert session.lease_end == lease_end
    assert isinstance(a.control.pop(), Refused)


def test_a_local_without_the_value_acknowledges_with_its_next_renewal() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    b.delete("k")
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    recipient = world.state._invalidations.recipient(session)
    assert recipient.acknowledged == 0
    world.live(1.0)
    assert recipient.acknowledged == 1


def test_a_late_holder_is_sent_what_it_misses() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    a.subscribed = False  # SUB is cut off
    deletion = b.begin_delete("k")
    deletion.send()
    world.settle()
    assert not deletion.replies
    world.live(0.02, step=0.001)
    assert deletion.replies
    assert a.hit("k") is None
    assert world.state.counters["reminders"] == 1


def test_a_silent_holder_is_reminded_with_growing_pauses() -> None:
    world = World(lease=2.0)
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    world.members.remove(a)
    b.begin_delete("k").send()
    reminders = []
    for _ in range(1000):
        world.advance(0.002)
        world.settle()
        while a.control:
            assert isinstance(a.control.popleft(), Synced)
            reminders.append(world.now)
    gaps = [late - early for early, late in itertools.pairwise(reminders)]
    assert 4 <= len(reminders) <= 12
    assert all(late >= early - 0.003 for early, late in itertools.pairwise(gaps))


def test_a_targeted_invalidation_renews_no_lease() -> None:
    world = World()
    (a,) = world.joined("a")
    a.tick()
    lease_end = a.state.lease_end
    world.advance(1.0)
    a.receive(Synced(world.epoch, a.state.session, 0, 0, 0, []))
    assert a.state.lease_end == lease_end


def test_a_renewal_that_brings_nothing_is_not_acknowledged() -> None:
    world = World()
    (a,) = world.joined("a")
    world.advance(1.0)
    a.tick()
    a.send()
    a.listen()
    assert a.tick() == []


def test_a_targeted_invalidation_with_nothing_new_is_acknowledged() -> None:
    """The acknowledgement before it was lost, and Global still waits."""
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    a.hear()
    a.tick()
    a.outgoing.clear()
    world.advance(0.01)
    world.tick()
    a.listen()
    assert [type(message) for message in a.tick()] == [Ack]
    a.send()
    assert deletion.replies


def test_many_deletions_are_acknowledged_now_and_then_though_none_waits() -> None:
    """Otherwise a late holder would be sent all of them again, or the log would be too short."""
    world = World()
    (a,) = world.joined("a")
    keys = [f"k{number}" for number in range(ACK_EVERY)]
    a.receive(Broadcast(world.epoch, 1, keys[:-1], False))
    assert a.tick() == []
    a.receive(Broadcast(world.epoch, ACK_EVERY, keys[-1:], False))
    assert [type(message) for message in a.tick()] == [Ack]


def test_after_a_partial_acknowledgement_the_rest_is_sent_again_soon() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.begin_set(("k", b"v"), ("l", b"v")).finish()
    a.begin_get("k", "l").finish()
    a.subscribed = False
    b.begin_delete("k").send()
    for _ in range(30):
        world.advance(0.01)
        world.tick()  # reminds, with growing pauses
    b.begin_delete("l").send()
    world.deliver(a.route, Ack(world.epoch, a.state._secret, 1))
    a.control.clear()
    world.advance(0.006)
    world.tick()
    assert a.control
