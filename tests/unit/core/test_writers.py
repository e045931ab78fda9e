"""Sessions of the kinds WRITER and OBSERVER, and requests without a session."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority.sessions import JOIN_TIMEOUT, WRITER_IDLE, WRITER_SILENCE, Session
from dstore.protocol import content
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    AskMap,
    Chunk,
    Del,
    DelStatus,
    Fetch,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Kind,
    Large,
    MapReply,
    Refusal,
    Refused,
    Scan,
    ScanReply,
    Set,
    SetStatus,
    Stage,
    Staged,
    Stats,
    StatsReply,
    Stored,
    Sync,
    Synced,
    Unwait,
    Wait,
    Welcome,
)
from dstore.protocol.messages import SetItem as Item
from tests.unit.core.world import LEASE, World, item


class Peer:
    """A bare session of some kind."""

    def __init__(self, world: World, kind: Kind, name: str) -> None:
        self.world, self.route = world, name.encode()
        welcome = self.ask(Hello(world.random16(), 0, NO_SESSION, name, kind))
        assert isinstance(welcome, Welcome)
        self.id, self.secret, self.seq = welcome.session, welcome.secret, welcome.seq

    @property
    def session(self) -> Session | None:
        return self.world.state._sessions.get(self.id)

    @property
    def inbox(self) -> Any:
        return self.world.inboxes.setdefault(self.route, type(self.world.inboxes[self.route])())

    def ask(self, message: Any) -> Any:
        """The answer, or None while there is none."""
        self.world.deliver(self.route, message)
        inbox = self.world.inboxes.get(self.route)
        return inbox.popleft() if inbox else None

    def set(self, write: int, *pairs: Any, holder: int = 0, replace: bool = False) -> Any:
        items = [item(self.world, key, value) for key, value in pairs]
        epoch = self.world.epoch
        return self.ask(Set(epoch, self.id, write, write, 0, replace, items, holder))

    def delete(self, write: int, *keys: str, seen: int = 0) -> Any:
        return self.ask(Del(self.world.epoch, self.id, write, write, seen, True, list(keys)))


def peers(world: World, kind: Kind, *names: str) -> list[Peer]:
    return [Peer(world, kind, name) for name in names]


# ---- writers ----------------------------------------------------------------------------------


def test_a_writer_is_no_holder_and_not_notified() -> None:
    world = World()
    (w,) = peers(world, Kind.WRITER, "w")
    assert w.session is not None
    assert w.session.id not in world.state._invalidations._recipients
    (result,) = w.set(1, ("k", b"v"), holder=w.id).items
    assert (result.status, result.cacheable) == (SetStatus.STORED, False)
    (found,) = w.ask(Get(world.epoch, w.id, 5, ["k"])).items
    assert not found.cacheable
    assert len(world.state._holders) == 0
    (result,) = w.delete(2, "k").items
    assert (result.status, result.confirmed, result.expired) == (DelStatus.DELETED, 0, 0)
    assert world.state._holders.width == 0


def test_a_writer_neither_renews_nor_acknowledges() -> None:
    world = World()
    (w,) = peers(world, Kind.WRITER, "w")
    assert w.session is not None
    end = w.session.lease_end
    for message in (Sync(world.epoch, w.secret, 1, 0, 0), Ack(world.epoch, w.secret, 0)):
        refused = w.ask(message)
        assert isinstance(refused, Refused)
        assert (refused.refusal, refused.session) == (Refusal.BAD_MESSAGE, w.secret)
    assert w.session.lease_end == end


def test_the_holder_that_a_set_names_may_cache_and_is_awaited() -> None:
    world = World()
    (a,) = world.joined("a")
    (w,) = peers(world, Kind.WRITER, "w")
    (result,) = w.set(1, ("k", b"v"), holder=a.state.session).items
    assert result.cacheable
    assert w.delete(2, "k") is None
    a.turn()
    (result,) = w.inbox.popleft().items
    assert result.confirmed == 1


@pytest.mark.parametrize("who", ["none", "unknown", "ended", "observer"])
def test_a_set_for_a_holder_that_is_none_is_executed_and_not_cacheable(who: str) -> None:
    world = World()
    (a,) = world.joined("a")
    w, (o,) = Peer(world, Kind.WRITER, "w"), peers(world, Kind.OBSERVER, "o")
    holder = {"none": NO_SESSION, "unknown": 77, "ended": a.state.session, "observer": o.id}[who]
    if who == "ended":
        world.deliver(b"x", Goodbye(world.epoch, a.state._secret))
    (stored,) = w.set(1, ("k", b"v"), holder=holder).items
    (occupied,) = w.set(2, ("k", b"w"), holder=holder).items
    (replaced,) = w.set(3, ("k", b"w"), holder=holder, replace=True).items
    statuses = [each.status for each in (stored, occupied, replaced)]
    assert statuses == [SetStatus.STORED, SetStatus.OCCUPIED, SetStatus.REPLACED]
    assert not (stored.cacheable or replaced.cacheable or occupied.found)
    assert len(world.state._holders) == 0


def test_a_holder_that_ends_while_its_set_is_queued_gets_no_bit() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    b.set("k", b"v")
    (w,) = peers(world, Kind.WRITER, "w")
    assert w.delete(1, "k") is None
    assert w.set(2, ("k", b"new"), holder=a.state.session) is None
    world.deliver(b"x", Goodbye(world.epoch, a.state._secret))
    b.turn()
    assert [each.items[0].status for each in w.inbox] == [DelStatus.DELETED, SetStatus.STORED]
    assert not w.inbox[1].items[0].cacheable
    assert c.state.session
    assert len(world.state._holders) == 0


def test_two_processes_of_a_host_use_the_same_write_numbers() -> None:
    world = World()
    (shared,) = world.joined("host")
    v, w = peers(world, Kind.WRITER, "v", "w")
    for number, writer in enumerate((v, w)):
        reply = writer.set(1, (f"k{number}", b"v"), holder=shared.state.session)
        assert reply.items[0].status is SetStatus.STORED
        assert reply.session == writer.id
    assert world.engine.read("k0") is not None
    assert world.engine.read("k1") is not None


def test_what_one_writer_has_seen_ends_no_outcome_of_another() -> None:
    world = World()
    world.engine_holds("k")
    v, w = peers(world, Kind.WRITER, "v", "w")
    assert v.delete(1, "k").items[0].status is DelStatus.DELETED
    w.delete(5, "other", seen=5)
    (shared,) = world.joined("host")
    world.deliver(b"x", Sync(world.epoch, shared.state._secret, 1, 0, 99))
    assert v.delete(1, "k").items[0].status is DelStatus.DELETED, "the outcome that was recorded"
    refused = w.delete(4, "k", seen=5)
    assert refused.refusal is Refusal.STALE_WRITE


def test_a_silent_writer_is_dropped_with_its_outcomes_and_uploads() -> None:
    world = World()
    (w,) = peers(world, Kind.WRITER, "w")
    w.set(1, ("k", b"v"))
    assert world.state._sessions.writes.taken > 0
    world.live(WRITER_IDLE + WRITER_SILENCE - 1, step=1.0)
    assert w.session is not None
    world.live(1 + 2 * LEASE, step=1.0)
    assert w.session is None
    assert world.state._sessions.writes.taken == 0
    refused = w.set(1, ("k", b"v"))
    assert refused.refusal is Refusal.UNKNOWN_SESSION, "it is not executed again"


def test_a_writer_is_kept_for_ten_leases_if_these_are_longer() -> None:
    world = World(lease=20.0)
    (w,) = peers(world, Kind.WRITER, "w")
    w.set(1, ("k", b"v"))
    world.live(WRITER_IDLE + 10 * 20.0 - 1, step=10.0)
    assert w.session is not None
    world.live(40.0, step=10.0)
    assert w.session is None


def test_a_writer_that_repeats_what_is_pending_is_not_silent() -> None:
    world = World(lease=30.0)
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    (w,) = peers(world, Kind.WRITER, "w")
    for ended in (False, True):
        world.advance(4.0)
        reply = w.delete(1, "k")
        assert (reply is None) is not ended
        assert w.session is not None
        span = WRITER_IDLE + world.state._sessions.linger
        assert world.state._sessions.lingers_until(w.session) == world.now + span
        world.settle()


def test_a_writer_that_uploads_is_not_silent() -> None:
    world = World()
    (w,) = peers(world, Kind.WRITER, "w")
    body = bytes(900)
    stored = Stored(world.random16(), "bytes", Large(len(body), content.digest("bytes", body)))
    for at in range(len(body) // 50):
        part = body[50 * at : 50 * at + 50]
        staged = w.ask(Stage(world.epoch, w.id, at, stored, 50 * at, part))
        assert isinstance(staged, Staged)
        assert staged.received == 50 * at + 50
        world.advance(5.0)
        for upload in world.state._stages._uploads.values():
            upload.since = world.now  # as if more had come
        world.tick()
    assert w.session is not None


def test_an_upload_belongs_to_the_writer_and_not_to_the_membership() -> None:
    world = World()
    (shared,) = world.joined("host")
    v, w = peers(world, Kind.WRITER, "v", "w")
    body = b"0123456789"
    stored = Stored(world.random16(), "bytes", Large(len(body), content.digest("bytes", body)))
    v.ask(Stage(world.epoch, v.id, 1, stored, 0, body))
    for session in (w.id, shared.state.session):
        message = Set(world.epoch, session, 1, 1, 0, False, [Item("k", stored)], w.id)
        assert w.ask(message).items[0].status is SetStatus.ABSENT
    message = Set(world.epoch, v.id, 2, 1, 0, False, [Item("k", stored)], shared.state.session)
    (result,) = v.ask(message).items
    assert (result.status, result.cacheable) == (SetStatus.STORED, True)
    chunk = w.ask(Fetch(world.epoch, shared.state.session, 3, "k", stored.token, 0, 100))
    assert bytes(chunk.data) == body
    v.ask(Goodbye(world.epoch, v.secret))
    assert bytes(world.bulk.read(stored.token, 0, 100) or b"") == body


def test_a_writer_that_ends_drops_its_uploads_and_finishes_what_has_started() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    (w,) = peers(world, Kind.WRITER, "w")
    before = world.state._sessions.writes.taken
    stored = Stored(world.random16(), "bytes", Large(10, bytes(32)))
    w.ask(Stage(world.epoch, w.id, 1, stored, 0, b"01234"))
    assert w.delete(1, "k") is None
    w.ask(Goodbye(world.epoch, w.secret))
    assert len(world.state._stages) == 0
    world.settle()
    assert world.engine.read("k") is None
    assert world.state._sessions.writes.taken == before


def test_a_flood_of_writers_that_write_nothing_does_not_keep_its_places() -> None:
    world = World()
    flood = peers(world, Kind.WRITER, *(f"f{number}" for number in range(50)))
    world.live(max(LEASE, JOIN_TIMEOUT) - 0.1)
    assert all(each.session for each in flood)
    world.live(LEASE)
    assert not any(each.session for each in flood)


def test_where_places_are_scarce_an_idle_writer_gives_way_and_a_busy_one_does_not() -> None:
    world = World()
    busy, idle = peers(world, Kind.WRITER, "busy", "idle")
    busy.set(1, ("k", b"v"))
    idle.set(1, ("l", b"v"))
    world.state._memberships.max_clients = 2
    late = world.member("late")
    world.live(WRITER_IDLE - 1, step=1.0)
    assert not late.state.session
    busy.set(1, ("k", b"v"))
    world.live(2.5, step=0.5)
    assert late.state.session
    assert (busy.session is None, idle.session is None) == (False, True)


def test_one_address_has_its_share_of_the_places_whatever_the_kinds() -> None:
    world = World()
    world.state._memberships.max_clients = 4
    world.state._memberships._peer_of = lambda route: "far"
    for kind in Kind:
        (each,) = peers(world, kind, kind.name)
        each.ask(Sync(world.epoch, each.secret, 1, 0, 0))
    for kind in Kind:
        world.deliver(b"x", Hello(world.random16(), 0, NO_SESSION, "x", kind))
        refused = world.inboxes[b"x"].pop()
        assert isinstance(refused, Refused)
        assert "from far" in refused.text


# ---- observers --------------------------------------------------------------------------------


def test_an_observer_is_notified_and_no_deletion_waits_for_it() -> None:
    world = World()
    (o,) = peers(world, Kind.OBSERVER, "o")
    world.engine_holds("k")
    (found,) = o.ask(Get(world.epoch, o.id, 1, ["k"])).items
    assert not found.cacheable
    (w,) = peers(world, Kind.WRITER, "w")
    (result,) = w.delete(1, "k").items
    assert (result.confirmed, result.expired) == (0, 0)
    synced = o.ask(Sync(world.epoch, o.secret, 1, 0, 0, True))
    assert isinstance(synced, Synced)
    assert (synced.keys, synced.acknowledge, synced.committed) == (["k"], False, 1)
    assert world.state._invalidations.watchers == 1
    o.ask(Goodbye(world.epoch, o.secret))
    assert world.state._invalidations.watchers == 0


def test_a_broadcast_that_is_to_be_acknowledged_needs_no_acknowledgement_of_observers() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    observers = peers(world, Kind.OBSERVER, "o")
    b.set("k", b"v")
    for each in (a, c):
        each.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    assert world.state._invalidations.broadcasts.awaited == 1, "three of four recipients hold it"
    for each in (a, b, c):
        each.turn()
    deletion.answer()
    assert deletion.result["k"].confirmed == 3
    assert not observers[0].inbox


def test_observers_count_where_a_broadcast_would_wake_them_up() -> None:
    """One holder among many observers is sent a targeted invalidation."""
    world = World()
    (a,) = world.joined("a")
    observers = peers(world, Kind.OBSERVER, "o", "p", "q")
    a.set("k", b"v")
    deletion = a.begin_delete("k")
    deletion.send()
    assert world.state._invalidations.broadcasts.awaited == 0
    a.turn()
    assert deletion.replies
    assert not any(each.inbox for each in observers)


# ---- without a session ------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", ["this", "any"])
def test_without_a_session_a_peer_reads_and_nothing_is_cacheable(epoch: str) -> None:
    world = World()
    (b,) = world.joined("b")
    b.set("k", b"v")
    body = b"0123456789"
    stored = Stored(world.random16(), "bytes", Large(len(body), content.digest("bytes", body)))
    (w,) = peers(world, Kind.WRITER, "w")
    w.ask(Stage(world.epoch, w.id, 1, stored, 0, body))
    w.ask(Set(world.epoch, w.id, 1, 1, 0, False, [Item("large", stored)]))
    held = world.state._holders.of("k")
    named = (world.epoch if epoch == "this" else 0, NO_SESSION, 7)
    reply = w.ask(Get(*named, ["k", "large", "none"]))
    assert isinstance(reply, GetReply)
    assert reply.uncacheable == [0, 1]
    assert (reply.epoch, reply.session, reply.request) == (world.epoch, NO_SESSION, 7)
    assert not w.ask(Wait(*named, "k", 5.0)).items[0].cacheable
    for message, kind in (
        (Scan(*named, "", "", 10), ScanReply),
        (Stats(*named), StatsReply),
        (AskMap(*named), MapReply),
        (Fetch(*named, "large", stored.token, 0, 10), Chunk),
    ):
        answer = w.ask(message)
        assert isinstance(answer, kind)
        assert answer[:3] == (world.epoch, NO_SESSION, 7)
    assert world.state._holders.of("k") == held
    assert world.state._holders.of("large") == 0


def test_a_wait_without_a_session_is_answered_not_cacheable_and_can_be_withdrawn() -> None:
    world = World()
    (b,) = world.joined("b")
    (w,) = peers(world, Kind.WRITER, "w")
    for number in (1 << 61, 1 << 62):
        assert w.ask(Wait(world.epoch, NO_SESSION, number, "k", 50.0)) is None
    assert world.state._sessions.waits.taken > 0
    w.ask(Unwait(world.epoch, NO_SESSION, 1 << 61, "k"))
    assert len(world.state._waits) == 1
    b.set("k", b"v")
    (reply,) = w.inbox
    assert (reply.session, reply.request, reply.items[0].cacheable) == (NO_SESSION, 1 << 62, False)
    assert world.state._sessions.waits.taken == 0


def test_waits_without_a_session_have_one_account_and_leave_the_others_their_share() -> None:
    world = World()
    (a,) = world.joined("a")
    (w,) = peers(world, Kind.WRITER, "w")
    world.state._sessions.waits.total = world.state._sessions.waits.assured
    number = 0
    while (answer := w.ask(Wait(world.epoch, NO_SESSION, number, "k", 50.0))) is None:
        number += 1
    assert answer.refusal is Refusal.BUSY
    assert a.begin_wait("k", world.now + 50).send() is None, "what a session has in any case"
    world.advance(61.0)
    world.tick()
    assert world.state._sessions.waits.taken == 0


def test_without_a_session_nothing_is_written_renewed_or_ended() -> None:
    world = World()
    world.engine_holds("k")
    (w,) = peers(world, Kind.WRITER, "w")
    named = (world.epoch, NO_SESSION, 7)
    stored = Stored(world.random16(), "bytes", Large(1, bytes(32)))
    for message in (
        Set(*named, 1, 1, True, [item(world, "k", b"new")]),
        Del(*named, 1, 1, True, ["k"]),
        Stage(*named, stored, 0, b"x"),
        Sync(world.epoch, NO_SESSION, 1, 0, 0),
        Ack(world.epoch, NO_SESSION, 0),
    ):
        assert w.ask(message).refusal is Refusal.UNKNOWN_SESSION
    assert world.engine.read("k") is not None
    assert len(world.state._stages) == 0


def test_sessions_are_counted_by_kind_and_only_memberships_lapse() -> None:
    world = World()
    world.joined("a")
    peers(world, Kind.WRITER, "v", "w")
    (o,) = peers(world, Kind.OBSERVER, "o")
    metrics: Any = world.state.metrics(world.now)
    assert (metrics["sessions"], metrics["writers"], metrics["observers"]) == (1, 2, 1)
    kinds = [row["kind"] for row in metrics["locals"].values()]
    assert kinds == ["member", "writer", "writer", "observer"]
    world.advance(LEASE + 0.5)
    assert world.state.metrics(world.now)["lapsed"] == 1
    o.ask(Goodbye(world.epoch, o.secret))
    assert world.state.metrics(world.now)["observers"] == 0
    assert not any(str(o.secret) in str(each) for each in metrics.values())


def test_a_repeated_hello_of_a_writer_gets_the_same_answer() -> None:
    world = World()
    hello = Hello(world.random16(), 0, NO_SESSION, "w", Kind.WRITER)
    for _ in range(2):
        world.deliver(b"w", hello)
    first, second = world.inboxes[b"w"]
    assert first == second
    assert len(world.state._sessions) == 1
