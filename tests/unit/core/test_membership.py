"""Epoch and session: who belongs to which life of Global, and what a change of it voids."""

from __future__ import annotations

import itertools

import pytest

from dstore.core.local.state import MARGIN
from dstore.errors import GlobalUnavailable
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    Broadcast,
    Farewell,
    Get,
    Goodbye,
    Hello,
    Refusal,
    Refused,
    Sync,
    Synced,
    ToGlobal,
    Welcome,
)
from tests.unit.core.world import LEASE, World


def only(world: World, route: bytes) -> object:
    (message,) = world.inboxes[route]
    return message


def test_hello_opens_a_session_with_a_lease_and_an_empty_cache() -> None:
    world = World()
    (a,) = world.joined("a")
    assert a.state.epoch == world.epoch
    assert world.state._sessions.get(a.state.session)
    assert a.state.lease_end == world.now + LEASE * (1 - MARGIN)


def test_hello_counts_as_the_first_sync() -> None:
    world = World()
    a, _b = world.joined("a", "b")
    a.set("k", b"v")
    a.delete("k")
    (c,) = world.joined("c")
    assert c.state.applied == 1


def welcomed(world: World, route: bytes = b"r", nonce: bytes = b"") -> Welcome:
    """Global's answer to the HELLO of somebody."""
    world.deliver(route, Hello(nonce or world.random16(), 0, 0, ""))
    welcome = world.inboxes[route].pop()
    assert isinstance(welcome, Welcome)
    return welcome


def test_session_ids_and_secrets_are_what_the_host_draws_and_none_is_zero_or_in_use() -> None:
    world = World()
    drawn = iter([NO_SESSION, 1 << 62, NO_SESSION, 8, 1 << 62, NO_SESSION, 5, 8, 0, 9])
    world.state._sessions._random63 = drawn.__next__
    answers = [welcomed(world) for _ in range(2)]
    assert [(each.session, each.secret) for each in answers] == [(1 << 62, 8), (5, 9)]


def test_session_ids_and_secrets_do_not_follow_from_each_other() -> None:
    world = World()
    ids = []
    for _ in range(100):
        welcome = welcomed(world)
        ids += [welcome.session, welcome.secret]
        world.deliver(b"r", Goodbye(world.epoch, welcome.secret))
        world.inboxes[b"r"].clear()
    assert len(set(ids)) == 200
    assert len({late - early for early, late in itertools.pairwise(ids)}) == 199
    assert sum(each > 1 << 60 for each in ids) > 100, "all 63 bits are used"


def test_a_hello_that_arrives_again_gets_the_same_answer_and_changes_nothing() -> None:
    world = World()
    a = world.member("a")
    (hello,) = a.tick()
    a.send()
    first = a.control[0]
    assert isinstance(first, Welcome)
    a.listen()
    holder = world.state._sessions.get(first.session)
    assert holder is not None
    recipient = world.state._invalidations.recipient(holder)
    lease_end, acknowledged = holder.lease_end, recipient.acknowledged
    (b,) = world.joined("b")
    b.set("k", b"v")
    b.delete("k")
    world.advance(1.0)
    world.deliver(a.route, hello)
    assert a.control.pop() == first
    assert (holder.lease_end, recipient.acknowledged) == (lease_end, acknowledged)
    assert len(world.state._sessions) == 2


def test_a_hello_that_arrives_again_does_not_count_as_an_acknowledgement() -> None:
    world = World()
    a = world.member("a")
    (hello,) = a.tick()
    world.settle()
    (b,) = world.joined("b")
    b.set("k", b"v")
    assert a.get("k") == b"v"
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()  # so that only ``a`` is awaited
    world.deliver(a.route, hello)
    world.tick()
    assert world.engine.read("k") is not None
    assert a.hit("k") == b"v"
    assert not deletion.replies


def test_the_lease_of_a_repeated_hello_counts_from_the_first() -> None:
    world = World()
    a = world.member("a")
    a.tick()
    sent_at = world.now
    world.advance(0.2)
    a.tick()
    a.send()
    a.send()
    a.listen()
    assert a.state.lease_end == sent_at + LEASE * (1 - MARGIN)


def test_a_local_takes_only_the_answer_to_its_latest_hello() -> None:
    world = World()
    a = world.member("a")
    a.tick()
    a.outgoing.clear()
    a.receive(Welcome(world.epoch, 7, b"x" * 16, 0, LEASE, "tcp://*:2", 1000, 1000, 8))
    assert a.state.session == 0
    world.settle()
    a.tick()
    world.live(0.1)
    session = a.state.session
    assert session
    a.receive(Welcome(world.epoch, 9, a.state._nonce, 0, LEASE, "tcp://*:2", 1000, 1000, 8))
    assert a.state.session == session


def test_a_hello_ends_the_session_that_it_replaces() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    assert a.get("k") == b"v"
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert not deletion.replies
    world.deliver(b"new", Hello(world.random16(), world.epoch, a.state._secret, "a"))
    assert deletion.replies, "nobody waits for a session that was given up"
    world.deliver(b"old", Ack(world.epoch, a.state._secret, 1))
    assert isinstance(only(world, b"old"), Refused)


@pytest.mark.parametrize("kind", ["ack", "sync", "get"])
@pytest.mark.parametrize("wrong", ["epoch", "session"])
def test_a_message_of_another_epoch_or_session_is_refused_and_changes_nothing(
    kind: str, wrong: str
) -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    holder = world.state._sessions.get(a.state.session)
    assert holder is not None
    lease_end = holder.lease_end
    world.advance(0.1)
    epoch = world.epoch + (wrong == "epoch")
    session = a.state.session + 100 * (wrong == "session")
    secret = a.state._secret + 100 * (wrong == "session")
    messages: dict[str, ToGlobal] = {
        "ack": Ack(epoch, secret, 1),
        "sync": Sync(epoch, secret, 1, 1, 0),
        "get": Get(epoch, session, 1, ["k"]),
    }
    world.deliver(b"r", messages[kind])
    refused = only(world, b"r")
    assert isinstance(refused, Refused)
    assert refused.refusal == (Refusal.OTHER_EPOCH if wrong == "epoch" else Refusal.UNKNOWN_SESSION)
    assert (refused.epoch, refused.session) == (epoch, session if kind == "get" else secret)
    assert holder.lease_end == lease_end
    assert not deletion.replies


def test_a_broadcast_of_another_epoch_is_not_applied() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    a.receive(Broadcast(world.epoch + 1, 1, ["k"], True))
    assert a.hit("k") == b"v"
    assert a.state.applied == 0


@pytest.mark.parametrize("wrong", ["epoch", "session"])
def test_a_sync_answer_of_another_epoch_or_session_is_ignored(wrong: str) -> None:
    world = World()
    (a,) = world.joined("a")
    lease_end = a.state.lease_end
    world.advance(1.0)
    a.tick()
    epoch = world.epoch + (wrong == "epoch")
    session = a.state.session + (wrong == "session")
    a.receive(Synced(epoch, session, 1, 0, 5, ["k"] * 5))
    assert a.state.lease_end == lease_end
    assert a.state.applied == 0


def test_a_change_of_session_voids_lease_cache_requests_and_applied_number_together() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    b.set("gone", b"v")
    b.delete("gone")
    world.publish()
    world.settle()
    a.get("k")
    reading = a.begin_get("other")
    assert a.state.applied == 1
    world.start_global()
    a.receive(Refused(1, a.state.session, 0, Refusal.OTHER_EPOCH, ""))
    assert a.state.lease_end < world.now
    assert len(a.state.cache) == 0
    assert (a.state.epoch, a.state.session, a.state.applied) == (0, 0, 0)
    assert a.state.asking("other") is None
    reading.give_up()


def test_a_refusal_of_a_former_session_does_not_end_the_present_one() -> None:
    world = World()
    (a,) = world.joined("a")
    session = a.state.session
    a.receive(Refused(world.epoch, session + 1, 0, Refusal.UNKNOWN_SESSION, ""))
    a.receive(Refused(world.epoch + 1, session, 0, Refusal.OTHER_EPOCH, ""))
    assert a.state.session == session


def test_a_local_joins_the_next_life_of_global_by_itself() -> None:
    world = World()
    (a,) = world.joined("a")
    world.start_global()
    world.live(1.0)
    assert a.state.epoch == world.epoch
    assert world.now < a.state.lease_end


def test_a_goodbye_voids_the_lease_and_closes_fills_first_and_lingers_until_answered() -> None:
    world = World()
    (a,) = world.joined("a")
    a.set("k", b"v")
    reading = a.begin_get("other")
    reading.send()
    a.state.goodbye(world.now)
    assert a.hit("k") is None
    assert a.state.lease_end < world.now
    (goodbye,) = a.tick()
    assert isinstance(goodbye, Goodbye)
    a.outgoing.clear()  # lost
    world.advance(0.1)
    assert len(a.tick()) == 1
    assert a.state.session
    a.send()
    assert isinstance(a.listen(), Farewell)
    assert not a.state.session
    assert not len(world.state._sessions)
    reading.give_up()


def test_no_deletion_waits_for_a_local_that_has_said_goodbye() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert not deletion.replies
    a.state.goodbye(world.now)
    a.tick()
    a.send()
    assert deletion.replies


def test_no_fill_after_a_goodbye() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    reading = a.begin_get("k")
    reading.send()
    a.state.goodbye(world.now)
    reading.answer()
    assert len(a.state.cache) == 0


@pytest.mark.at_once
def test_a_session_that_is_silent_for_long_is_dropped_and_its_local_joins_again() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    world.members.remove(a)  # it sleeps
    world.live(12 * LEASE, step=0.5)
    assert world.state._sessions.get(a.state.session) is None
    world.members.append(a)
    old = a.state.session
    world.settle()
    world.live(0.5)
    assert a.state.session not in (0, old)
    assert a.state.counters["revalidated"] == len(a.state.cache) == 1


def test_no_more_locals_than_the_bound_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(world.state._memberships, "max_clients", 1)
    (a,) = world.joined("a")
    b = world.member("b")
    call = b.begin_get("k", timeout=0.5)
    b.turn()
    refused = b.listen()
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.BUSY
    call.time_out()
    assert "1 Locals are here" in str(call.error)
    a.state.goodbye(world.now)
    world.live(1.5)
    assert b.state.session


def test_one_address_takes_its_share_of_the_places_and_leaves_the_rest_to_others() -> None:
    world = World()
    world.state._memberships.max_clients = 4
    world.state._memberships._peer_of = lambda route: "far" if route.startswith(b"far") else "near"
    far = world.joined("far1", "far2", "far3")
    world.renew(*far)
    refused = world.member("far4")
    call = refused.begin_get("k", timeout=0.5)
    refused.turn()
    refused.listen()
    call.time_out()
    assert "3 Locals are here from far, as many as one address may have" in str(call.error)
    (near,) = world.joined("near1")
    assert near.state.session
    near.state.goodbye(world.now)
    far[0].state.goodbye(world.now)
    world.live(1.5)
    assert refused.state.session, "a place of its own address is free"


def test_where_places_are_scarce_none_is_kept_for_a_local_whose_lease_is_over() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.state._memberships.max_clients = 2
    world.renew(a, b)
    b.set("k", b"v")
    a.get("k")
    world.members.remove(a)
    c = world.member("c")
    world.live(0.9 * LEASE)
    assert not c.state.session
    deletion = b.begin_delete("k")
    deletion.send()
    world.live(0.5 * LEASE)
    assert c.state.session
    assert world.state._sessions.get(b.state.session)
    (reply,) = deletion.replies
    assert (reply.items[0].confirmed, reply.items[0].expired) == (1, 1)
    assert a.hit("k") is None
    world.members.append(a)
    world.live(LEASE)
    assert not a.state.session, "it asks for a place like anybody else"


def test_another_protocol_version_is_named_to_who_waits() -> None:
    world = World()
    a = world.member("a")
    call = a.begin_get("k", timeout=0.5)
    a.receive(Refused(0, 0, 0, Refusal.OTHER_VERSION, "protocol version 9 is not spoken here"))
    call.time_out()
    assert isinstance(call.error, GlobalUnavailable)
    assert "version 9" in str(call.error)


def test_a_message_without_a_session_is_not_taken_for_ones_own_before_joining() -> None:
    world = World()
    a = world.member("a")
    a.tick()
    a.receive(Synced(0, 0, 0, 0, 5, ["k"] * 5))
    assert a.state.applied == 0
    assert a.state.wake_at > world.now


def test_a_hit_that_noted_an_old_lease_finds_no_entry_of_a_new_session() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    noted = a.state.entries
    a.receive(Refused(a.state.epoch, a.state.session, 0, Refusal.UNKNOWN_SESSION, ""))
    world.live(0.5)
    a.get("k")
    assert "k" in a.state.entries
    assert not noted


def test_after_a_goodbye_nothing_is_due_any_more() -> None:
    world = World()
    (a,) = world.joined("a")
    a.state.goodbye(world.now)
    world.settle()
    assert not a.state.session
    assert a.state.wake_at == float("inf")
