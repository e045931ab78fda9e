"""The lease: from when it counts, what renews it, and what a hit has to look at."""

from __future__ import annotations

from dstore.core.local.membership import lease_word
from dstore.core.local.state import MARGIN, RENEW
from dstore.errors import GlobalUnavailable
from dstore.protocol.messages import Sync, Synced
from tests.unit.core.world import LEASE, World, body


def test_a_local_counts_from_before_sending_and_global_from_receipt() -> None:
    world = World()
    (a,) = world.joined("a")
    world.advance(LEASE * RENEW)
    a.tick()
    sent_at = world.now
    world.advance(0.3)
    a.send()
    received_at = world.now
    world.advance(0.3)
    a.listen()
    assert lease_word(a.state.lease_end) == lease_word(sent_at + LEASE * (1 - MARGIN))
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    assert session.lease_end == received_at + LEASE


def test_a_hit_needs_the_lease() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    assert a.hit("k") == b"v"
    world.advance(LEASE)
    assert a.hit("k") is None


def test_an_answer_renews_only_from_the_moment_its_own_sync_was_sent() -> None:
    world = World()
    (a,) = world.joined("a")
    world.advance(1.0)
    a.tick()
    first_sent = world.now
    a.send()
    world.advance(0.8)
    a.tick()
    a.outgoing.clear()
    a.listen()
    assert lease_word(a.state.lease_end) == lease_word(first_sent + LEASE * (1 - MARGIN))


def test_an_answer_to_a_sync_that_was_never_sent_renews_nothing() -> None:
    world = World()
    (a,) = world.joined("a")
    lease_end = a.state.lease_end
    world.advance(1.0)
    a.receive(Synced(world.epoch, a.state.session, 99, 0, 0, []))
    assert a.state.lease_end == lease_end


def test_the_renewal_carries_every_deletion_again() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    b.set("l", b"v")
    a.get("k")
    a.get("l")
    a.subscribed = False  # every publication is lost
    b.begin_delete("k", "l").send()
    world.advance(LEASE * RENEW)
    a.tick()
    a.send()
    a.listen()
    assert a.hit("k") is None
    assert a.hit("l") is None
    assert a.state.applied == 2


def test_when_the_log_no_longer_reaches_back_the_whole_cache_is_dropped() -> None:
    world = World(log_length=2)
    a, b = world.joined("a", "b")
    for key in ("p", "q", "r", "kept"):
        b.set(key, b"v")
    a.get("kept")
    a.subscribed = False
    for key in ("p", "q", "r"):
        b.begin_delete(key).send()
    b.turn()
    world.advance(LEASE * RENEW)
    a.tick()
    a.send()
    answer = a.listen()
    assert isinstance(answer, Synced)
    assert answer.keys is None
    assert len(a.state.cache) == 0
    assert a.state.applied == 3
    assert world.now < a.state.lease_end


def test_a_whole_cache_drop_spoils_fills_in_flight() -> None:
    world = World(log_length=1)
    a, b = world.joined("a", "b")
    for key in ("k", "p", "q"):
        b.set(key, b"v")
    reading = a.begin_get("k")
    reading.send()  # the reply, with seq 0, is under way
    a.subscribed = False
    deletion = b.begin_delete("k", "p", "q")
    deletion.send()
    b.turn()
    world.advance(LEASE * RENEW)
    a.tick()
    a.send()
    a.listen()
    reading.answer()
    assert body(reading.result["k"]) == b"v"
    assert "k" not in a.state.entries


def test_a_late_whole_cache_drop_does_not_undo_what_was_applied_since() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    world.advance(1.0)
    a.tick()
    a.state.membership.applied = 9
    a.receive(Synced(world.epoch, a.state.session, 1, 0, 5, None))
    assert a.state.applied == 9
    assert a.hit("k") == b"v"


def test_renewal_comes_every_third_of_the_lease() -> None:
    world = World()
    (a,) = world.joined("a")
    world.advance(LEASE * RENEW - 0.01)
    assert a.tick() == []
    world.advance(0.01)
    (sync,) = a.tick()
    assert isinstance(sync, Sync)
    assert a.tick() == []
    world.advance(LEASE * RENEW)
    assert len(a.tick()) == 1


def test_renewal_comes_at_once_after_a_reconnect() -> None:
    world = World()
    (a,) = world.joined("a")
    a.state.reconnected(world.now)
    assert a.state.wake_at <= world.now
    (sync,) = a.tick()
    assert isinstance(sync, Sync)


def test_hello_comes_at_once_after_a_reconnect() -> None:
    world = World()
    a = world.member("a")
    a.tick()
    for _ in range(5):
        world.advance(2.0)
        a.tick()
    a.outgoing.clear()
    assert a.tick() == []
    a.state.reconnected(world.now)
    assert len(a.tick()) == 1


def test_after_a_lapse_one_shared_sync_comes_first_and_the_cache_survives() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    a.set("l", b"v")
    world.advance(LEASE)
    one, two = a.begin_get("k"), a.begin_get("l")
    assert one.waits
    assert two.waits
    syncs = a.tick()
    assert len(syncs) == 1
    a.send()
    a.listen()
    for call in (one, two):
        call.look()
        assert call.done
    assert one.result["k"].from_local
    assert world.state.counters["gets"] == 0


def test_without_an_answer_a_lapsed_get_raises_global_unavailable() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    world.advance(LEASE)
    call = a.begin_get("k", timeout=3.0)
    call.time_out()
    assert isinstance(call.error, GlobalUnavailable)


def test_stale_ok_answers_from_a_lapsed_cache() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    world.advance(100.0)
    call = a.begin_get("k", stale_ok=True)
    assert body(call.result["k"]) == b"v"
