"""Global's own membership: what the processes of its host may answer, without any message."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority.host import RENEW
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    Del,
    DelReply,
    DelStatus,
    Goodbye,
    Hello,
    Refusal,
    Refused,
    Set,
    SetStatus,
    Stage,
    Stored,
    Sync,
    Wait,
    Welcome,
)
from tests.unit.core.host_page import FakePage, Process, shared
from tests.unit.core.world import LEASE, World, item


def writer(world: World, number: int = 1) -> int:
    """The id of a writer session."""
    hello = Hello(world.random16(), 0, NO_SESSION, "w", 1)  # type: ignore[arg-type]
    world.deliver(b"w%d" % number, hello)
    welcome = world.inboxes[b"w%d" % number].pop()
    assert isinstance(welcome, Welcome)
    return welcome.session


def deleted(world: World, session: int, write: int, *keys: str) -> Any:
    """The reply to a DEL, or None if it has not come."""
    route = b"deleter"
    world.deliver(route, Del(world.epoch, session, write, write, write, True, list(keys)))
    inbox = world.inboxes.get(route)
    return inbox.pop() if inbox else None


def test_a_word_is_written_before_the_engine_changes_and_counts_as_confirmed() -> None:
    world = World()
    page, process = shared(world)
    world.engine_holds("k")
    assert process.fill("k") == b"v"
    assert process.hit("k") == b"v"
    reply = deleted(world, writer(world), 1, "k")
    assert isinstance(reply, DelReply)
    assert (reply.items[0].status, reply.items[0].confirmed) == (DelStatus.DELETED, 1)
    assert page.noted == [("k", 1)]
    assert page.in_engine == [True]
    assert process.hit("k") is None
    assert process.fill("k") is None


def test_a_word_is_written_though_no_process_of_the_host_is_a_holder() -> None:
    world = World()
    page, _process = shared(world)
    world.engine_holds("k")
    reply = deleted(world, writer(world), 1, "k")
    assert (reply.items[0].confirmed, page.words) == (0, {"k": 1})


def test_it_is_neither_awaited_nor_sent_anything_nor_a_reason_to_broadcast() -> None:
    world = World()
    _page, process = shared(world)
    (a,) = world.joined("a")
    world.engine_holds("k")
    process.fill("k")
    before = {route: len(inbox) for route, inbox in world.inboxes.items()}
    assert deleted(world, writer(world), 1, "k").items[0].confirmed == 1
    assert world.state._invalidations.broadcasts.awaited == 0
    assert b"" not in world.inboxes
    assert all(len(world.inboxes[route]) == count for route, count in before.items())
    assert not a.published, "the broadcast is kept for a pause"


def test_it_waits_with_all_holders_for_the_commit_and_each_is_counted_once() -> None:
    world = World()
    page, process = shared(world)
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    process.fill("k")
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert process.hit("k") == b"v", "the deletion is not confirmed"
    assert page.noted == []
    assert process.fill("k") == b"v"
    a.turn()
    assert process.hit("k") is None
    deletion.answer()
    result = deletion.result["k"]
    assert (result.confirmed, result.expired) == (3, 0)
    assert page.noted == [("k", 1)]


def test_what_is_read_while_its_key_is_pending_is_not_valid_later() -> None:
    """The deletion has its number already, and the reply would have the same."""
    world = World()
    _page, process = shared(world)
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    a.get("k")
    deletion = b.begin_delete("k")
    deletion.send()
    b.turn()
    assert process.fill("k") == b"v"
    assert process.entries == {}
    a.turn()
    assert deletion.replies
    assert process.hit("k") is None


def test_the_writer_of_a_replacement_keeps_its_value_and_no_process_keeps_the_old_one() -> None:
    world = World()
    page, process = shared(world)
    other = Process(world, page, process.session)
    world.engine_holds("k")
    assert other.fill("k") == b"v"
    result = process.set(writer(world), 1, "k", b"new", True)
    assert (result.status, result.confirmed, result.cacheable) == (SetStatus.REPLACED, 1, True)
    assert page.noted == [("k", 1)]
    assert page.in_engine == [True]
    assert (process.hit("k"), other.hit("k")) == (b"new", None)
    assert other.fill("k") == b"new" == other.hit("k")


def test_words_come_in_the_order_of_the_commits_and_an_older_one_changes_nothing() -> None:
    world = World()
    page, _process = shared(world)
    a, b = world.joined("a", "b")
    for key in ("k", "l"):
        b.set(key, b"v")
    a.get("k")
    first, second = b.begin_delete("k"), b.begin_delete("l")
    for each in (first, second):
        each.send()
        b.turn()
    assert page.noted == [("l", 2)]
    a.turn()
    assert page.noted == [("l", 2), ("k", 1)]


def test_its_lease_is_renewed_by_ticks_and_ends_without_them() -> None:
    world = World()
    page, process = shared(world)
    world.engine_holds("k")
    process.fill("k")
    world.live(5 * LEASE)
    assert process.hit("k") == b"v"
    assert page.end > world.now + (1 - RENEW) * LEASE - 0.1
    world.advance(LEASE)
    assert process.hit("k") is None
    assert world.state.wake_at <= world.now


def test_the_session_of_the_host_is_never_dropped_nor_lapsed() -> None:
    world = World()
    _page, process = shared(world)
    world.live(30 * LEASE, step=0.5)
    assert world.state._sessions.get(process.session) is not None
    metrics: Any = world.state.metrics(world.now)
    assert (metrics["sessions"], metrics["lapsed"]) == (1, 0)
    assert metrics["locals"]["1"] == {"label": "host", "kind": "member", "lease_left": LEASE}


def test_the_session_of_the_host_takes_no_place_of_a_local() -> None:
    world = World()
    _page, process = shared(world)
    world.state._memberships.max_clients = 1
    (a,) = world.joined("a")
    assert a.state.session
    assert world.state._sessions.get(process.session) is not None


def test_no_message_renews_acknowledges_ends_or_replaces_it() -> None:
    world = World()
    page, process = shared(world)
    session = world.state._sessions.get(process.session)
    assert session is not None
    assert session.secret == NO_SESSION
    world.engine_holds("k")
    process.fill("k")
    epoch, noted = world.epoch, (page.end, session.lease_end)
    for secret in (NO_SESSION, process.session):
        for message in (Ack(epoch, secret, 0), Sync(epoch, secret, 1, 0, 9)):
            refused = process.ask(message)
            assert isinstance(refused, Refused)
            assert refused.refusal is Refusal.UNKNOWN_SESSION
        process.ask(Goodbye(epoch, secret))
        process.ask(Hello(world.random16(), epoch, secret, ""))
    assert world.state._sessions.get(process.session) is session
    assert noted == (page.end, session.lease_end)
    assert process.hit("k") == b"v"


def test_no_process_writes_or_uploads_in_the_name_of_the_host() -> None:
    """Two processes would give the same number to different writes."""
    world = World()
    _page, process = shared(world)
    envelope = (world.epoch, process.session, 1)
    for message in (
        Set(*envelope, 1, 1, False, [item(world, "k", b"v")], process.session),
        Del(*envelope, 1, 1, True, ["k"]),
        Stage(*envelope, Stored(bytes(16), "bytes", b""), 0, b"x"),
    ):
        refused = process.ask(message)
        assert isinstance(refused, Refused)
        assert refused.refusal is Refusal.BAD_MESSAGE
    assert world.engine.read("k") is None


# ---- a page that fails ------------------------------------------------------------------------


def test_a_page_that_cannot_be_written_is_voided_and_the_deletion_goes_on() -> None:
    world = World()
    page, process = shared(world, "note")
    world.engine_holds("k")
    process.fill("k")
    assert not world.state.host_lost
    assert deleted(world, writer(world), 1, "k") is not None
    assert (page.end, process.hit("k")) == (0.0, None)
    assert world.state.host_lost


def test_if_it_cannot_be_voided_either_the_deletion_waits_for_the_lease_that_it_had() -> None:
    world = World()
    page, process = shared(world, "note", "void")
    world.engine_holds("k")
    process.fill("k")
    end = page.end
    assert deleted(world, writer(world), 1, "k") is None
    assert process.hit("k") == b"v"
    world.publish()
    world.tick()  # a tick before that does not forget it
    assert world.state.wake_at == end
    world.advance(end - world.now - 0.001)
    world.tick()
    assert world.engine.read("k") is not None
    assert process.hit("k") == b"v"
    world.advance(0.001)
    assert process.hit("k") is None
    world.tick()
    assert world.engine.read("k") is None
    assert world.inboxes[b"deleter"]
    assert world.state.idle or not world.state._invalidations.pending


@pytest.mark.parametrize("half", [False, True])
def test_a_failing_renewal_ends_the_page_at_the_later_of_both_leases(half: bool) -> None:
    """It may have written the new end before it failed."""
    world = World()
    page, process = shared(world)
    world.engine_holds("k")
    process.fill("k")
    world.advance(LEASE / 2)
    page.failing, page.half = {"renew", "void"}, half
    world.tick()
    assert world.state.host_lost
    assert deleted(world, writer(world), 1, "k") is None
    while process.hit("k") is not None:
        assert world.engine.read("k") is not None
        world.advance(0.1)
        world.tick()
    world.live(LEASE)
    assert world.engine.read("k") is None


def test_a_new_page_does_not_make_up_for_the_former_one_that_is_still_trusted() -> None:
    world = World()
    page, process = shared(world, "note", "void")
    world.engine_holds("k", "l")
    process.fill("k")
    process.fill("l")
    session = writer(world)
    assert deleted(world, session, 1, "k") is None
    new_page, new_process = shared(world)
    assert new_process.session != process.session
    assert deleted(world, session, 2, "l") is None, "processes may still use the former page"
    assert (process.hit("k"), process.hit("l")) == (b"v", b"v")
    world.advance(page.end - world.now)
    world.tick()
    assert (world.engine.read("k"), world.engine.read("l")) == (None, None)
    assert new_page.words == {"k": 1, "l": 2}
    assert process.fill("k") is None


def test_a_page_that_is_given_up_and_cannot_be_voided_is_waited_for() -> None:
    world = World()
    page, process = shared(world, "void")
    world.engine_holds("k")
    process.fill("k")
    world.state.close_host(world.now)
    world.state.close_host(world.now)
    assert deleted(world, writer(world), 1, "k") is None
    assert process.hit("k") == b"v"
    world.advance(page.end - world.now)
    world.tick()
    assert world.engine.read("k") is None


class FailingPage(FakePage):
    """A page whose third invalidation cannot be written."""

    def note(self, key: str, seq: int) -> None:
        if len(self.noted) == 2:
            self.failing.add("note")
        super().note(key, seq)


@pytest.mark.parametrize("voids", [True, False])
def test_a_page_that_fails_in_the_middle_of_a_batch_leaves_all_in_order(voids: bool) -> None:
    world = World()
    session = world.state.open_host(world.now, "host")
    page = FailingPage(world)
    world.state.share(page, world.now)
    process = Process(world, page, session)
    keys = [f"k{number}" for number in range(5)]
    world.engine_holds(*keys)
    for key in keys:
        process.fill(key)
    if not voids:
        page.failing.add("void")
    reply = deleted(world, writer(world), 1, *keys)
    left = [key for key in keys if world.engine.read(key) is not None]
    assert left == ([] if voids else keys[2:])
    assert all(process.hit(key) is None for key in keys if key not in left)
    if not voids:
        assert reply is None
        assert list(world.state._invalidations.pending) == left
        assert not world.state.idle
        world.advance(page.end - world.now)
        world.tick()
        reply = world.inboxes[b"deleter"].pop()
    assert [each.status for each in reply.items] == [DelStatus.DELETED] * 5
    assert [each.confirmed for each in reply.items] == [1] * 5
    assert not world.state._invalidations.pending
    assert world.state._sessions.writes.taken < 1000


def test_what_stops_global_in_a_page_is_done_again_later() -> None:
    """As an interrupt does. The deletion is neither lost nor committed without its word."""
    world = World()
    page, process = shared(world)
    world.engine_holds("k")
    process.fill("k")
    session = writer(world)
    note = page.note

    def interrupted(key: str, seq: int) -> None:
        page.note = note  # type: ignore[method-assign]
        raise KeyboardInterrupt

    page.note = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        deleted(world, session, 1, "k")
    assert world.engine.read("k") is not None
    world.tick()
    assert page.words == {"k": 1}
    assert world.engine.read("k") is None


# ---- one session after the other --------------------------------------------------------------


def test_a_page_of_a_new_session_takes_the_place_of_the_former() -> None:
    world = World()
    page, process = shared(world)
    world.engine_holds("k")
    process.fill("k")
    process.ask(Wait(world.epoch, process.session, 9, "later", 50.0))
    new_page, new_process = shared(world)
    assert page.end == 0.0
    assert process.hit("k") is None
    assert len(world.state._waits) == 0
    refused = process.ask(Sync(world.epoch, process.session, 1, 0, 0))
    assert isinstance(refused, Refused)
    assert process.fill("k") is None
    new_process.fill("k")
    assert deleted(world, writer(world), 1, "k").items[0].confirmed == 1
    assert (page.words, new_page.words) == ({}, {"k": 1})


def test_a_session_whose_page_does_not_come_confirms_and_delays_nothing() -> None:
    world = World()
    session = world.state.open_host(world.now, "host")
    process = Process(world, FakePage(world), session)
    world.engine_holds("k")
    process.fill("k")
    assert world.state.host_lost
    assert deleted(world, writer(world), 1, "k") is not None
    world.state.close_host(world.now)
    assert not world.state.host_lost
    assert len(world.state._sessions) == 1, "the writer"
