"""Reads of values that the engine has to load: parked, and executed when the bytes are here."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.config import BATCH_BYTES_MAX, LOAD_BYTES_MIN
from dstore.core.authority import loads, reads, sessions
from dstore.core.authority.effects import NEVER, Load, Send
from dstore.core.engine import Loaded
from dstore.errors import StoreFull
from dstore.protocol.messages import (
    UNREADABLE,
    DelStatus,
    ExpireStatus,
    Get,
    GetReply,
    Large,
    Offer,
    Refusal,
    Refused,
    SetStatus,
    Stored,
    Unwait,
    Wait,
)
from dstore.protocol.offers import digest
from tests.unit.core.world import Call, Member, World, body

pytestmark = pytest.mark.at_once
"""These Worlds have engines that load when the test says so."""


def world_of(*names: str, **settings: Any) -> tuple[World, list[Member]]:
    """A World whose engine has all values away, and the Locals that have joined."""
    world = World(away=True, **settings)
    return world, world.joined(*names)


def ask(world: World, member: Member, number: int, *keys: str, route: bytes = b"x") -> None:
    """Deliver a GET."""
    state = member.state
    world.deliver(route, Get(state.epoch, state.session, number, list(keys)))


def wait(world: World, member: Member, number: int, key: str) -> None:
    state = member.state
    world.deliver(b"x", Wait(state.epoch, state.session, number, key, 20.0))


def said(world: World, route: bytes = b"x") -> list[Any]:
    """Take what was sent to a connection."""
    inbox = world.inboxes.get(route)
    found = list(inbox or ())
    if inbox:
        inbox.clear()
    return found


def only_reply(world: World, route: bytes = b"x") -> GetReply:
    (reply,) = said(world, route)
    assert isinstance(reply, GetReply)
    return reply


def only_refusal(world: World) -> Refusal:
    (reply,) = said(world)
    assert isinstance(reply, Refused)
    return reply.refusal


def begun(call: Call) -> Call:
    """Send a request, which is not answered."""
    assert call.send() is None
    return call


def deleted(world: World, member: Member, key: str) -> int:
    """Delete a key. Returns how many holders have confirmed that."""
    deletion = member.begin_delete(key)
    deletion.send()
    world.settle()
    deletion.answer()
    assert deletion.result[key].status is DelStatus.DELETED
    return int(deletion.result[key].confirmed)


# ---- one request ------------------------------------------------------------------------------


def test_a_value_that_is_away_is_answered_when_it_is_here_and_is_cached() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    reading = begun(a.begin_get("k"))
    assert [key for key, _ in world.load().wanted] == ["k"]
    reading.answer()
    assert body(reading.result["k"]) == b"v"
    assert a.hit("k") == b"v"
    assert deleted(world, b, "k") == 1, "who was answered is a holder"
    assert a.hit("k") is None
    assert (len(world.state._loads), world.state._sessions.loads.taken) == (0, 0)


def test_nobody_is_a_holder_while_a_value_is_being_loaded() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    reading = begun(a.begin_get("k"))
    assert deleted(world, b, "k") == 0
    world.load()
    reading.answer()
    assert reading.result == {}, "it is as if the request had come now"
    assert not len(world.state._holders)


def test_a_deletion_that_begins_while_a_value_is_being_loaded_keeps_it_out_of_the_caches() -> None:
    world, (a, b, c) = world_of("a", "b", "c")
    c.set("k", b"v")
    world.members.remove(c)  # the deletion waits for it
    reading = begun(a.begin_get("k"))
    deletion = b.begin_delete("k")
    deletion.send()
    assert not deletion.replies
    world.load()
    reading.answer()
    assert body(reading.result["k"]) == b"v"
    assert a.hit("k") is None
    world.live(2 * world.lease)
    deletion.answer()
    assert deletion.result["k"].expired == 1


def test_of_a_value_that_was_replaced_meanwhile_the_new_bytes_are_loaded() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    reading = begun(a.begin_get("k"))
    b.set("k", b"new", replace=True)
    world.load(b"v")  # of the former token
    assert not reading.replies
    world.load()
    reading.answer()
    assert body(reading.result["k"]) == b"new"
    assert a.hit("k") == b"new"
    assert deleted(world, b, "k") == 2


def test_the_number_of_an_answer_is_that_of_the_step_in_which_it_is_made() -> None:
    """An older one would make the value dead on arrival."""
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    seq = world.state._log.seq
    deleted(world, b, "k")
    b.set("k", b"new")
    world.load()
    world.load()
    reply = only_reply(world)
    assert (reply.seq, reply.bodies) == (seq + 1, [b"new"])


def test_a_reader_whose_session_has_ended_is_refused_and_is_no_holder() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    a.state.goodbye(world.now)
    world.settle()
    world.load()
    assert only_refusal(world) is Refusal.UNKNOWN_SESSION
    assert not len(world.state._holders)
    assert deleted(world, b, "k") == 0


def test_without_a_session_it_is_answered_and_not_cacheable() -> None:
    world, _ = world_of()
    world.engine_holds("k")
    world.deliver(b"x", Get(0, 0, 5, ["k"]))
    world.load()
    reply = only_reply(world)
    assert (reply.session, reply.bodies, reply.uncacheable) == (0, [b"v"], [0])


def test_the_short_way_leaves_it_to_the_long_one_and_does_nothing() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    get = Get(a.state.epoch, a.state.session, 7, ["k"])
    before = dict(world.state.counters)
    assert world.state.read(get, world.now) is None
    assert world.state.counters == before
    assert not len(world.state._holders)
    (load,) = world.state.receive(b"x", get, world.now)
    assert isinstance(load, Load)
    assert world.state.counters["gets"] == before["gets"] + 1
    (send,) = world.state.loaded(load.number, [b"v"], world.now)
    assert isinstance(send, Send)
    assert world.state.counters["gets"] == before["gets"] + 1, "it is counted once"


# ---- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [OSError("the disk is gone"), StoreFull("no room"), b"", b"too long", "v", None],
    ids=lambda result: repr(result),
)
def test_a_load_that_fails_is_not_taken_for_missing_and_is_tried_again(result: Any) -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    world.load(result)
    reply = only_reply(world)
    assert (reply.codecs, reply.bodies, reply.uncacheable) == ([UNREADABLE], [b""], [0])
    assert world.state.counters["failed_loads"] == 1
    assert deleted(world, b, "k") == 0, "who got nothing is no holder"
    world.engine_holds("k")
    ask(world, a, 2, "k")
    world.load()
    assert only_reply(world).bodies == [b"v"]


def test_a_load_that_fails_concerns_one_key() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k", "l")
    ask(world, a, 1, "k", "nothing", "l")
    world.load(OSError("of k"), b"v")
    reply = only_reply(world)
    assert (reply.codecs, reply.bodies) == ([UNREADABLE, "", "bytes"], [b"", None, b"v"])
    assert reply.uncacheable == [0]


def test_a_load_without_all_its_results_has_failed_for_the_others() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k", "l")
    ask(world, a, 1, "k", "l")
    (load,) = world.loads
    world._perform(world.state.loaded(load.number, [b"v"], world.now))
    assert only_reply(world).codecs == ["bytes", UNREADABLE]
    with pytest.raises(KeyError):
        world.state.loaded(load.number, [b"v", b"v"], world.now)


def test_a_load_that_failed_for_a_value_that_is_gone_does_not_matter() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    b.set("k", b"new", replace=True)
    world.load(LookupError("it was replaced"))
    world.load()
    assert only_reply(world).bodies == [b"new"]


# ---- several keys and several requests --------------------------------------------------------


def test_what_comes_before_the_first_value_that_is_away_is_answered_at_once() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("here", "k", "l")
    world.loading.is_away = lambda key: key != "here"  # type: ignore[method-assign]
    ask(world, a, 1, "here", "nothing", "k", "l")
    assert only_reply(world).bodies == [b"v", None]
    ask(world, a, 2, "k", "nothing", "here", "l")
    assert [key for key, _ in world.load().wanted] == ["k", "l"]
    assert only_reply(world).bodies == [b"v", None, b"v", b"v"]
    assert deleted(world, b, "l") == 1


def test_no_more_is_loaded_than_one_reply_has_room_for() -> None:
    world, (a,) = world_of("a", limit=1 << 30)
    for number in range(5):
        value = Stored(world.random16(), "bytes", bytes(BATCH_BYTES_MAX // 2))
        world.engine.bind(f"k{number}", value)
    ask(world, a, 1, *(f"k{number}" for number in range(5)))
    assert [key for key, _ in world.load().wanted] == ["k0", "k1"]
    assert len(only_reply(world).bodies) == 2


def test_a_key_that_is_asked_for_twice_is_loaded_once() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    ask(world, a, 1, "k", "k")
    assert len(world.load().wanted) == 1
    assert only_reply(world).bodies == [b"v", b"v"]


def test_a_value_is_loaded_once_for_all_who_wait_for_it() -> None:
    world, (a, b, c) = world_of("a", "b", "c")
    world.engine_holds("k", "l")
    ask(world, a, 1, "k", route=b"a")
    ask(world, b, 1, "k", "l", route=b"b")
    _, second = world.loads
    assert [key for key, _ in second.wanted] == ["l"]
    world.loads.rotate(1)
    world.load()  # of l
    assert not said(world, b"b")
    world.load()
    assert only_reply(world, b"a").bodies == [b"v"]
    assert only_reply(world, b"b").bodies == [b"v", b"v"]
    assert deleted(world, c, "k") == 2


def test_a_repeat_is_not_parked_twice_and_is_answered_where_it_came_from_last() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    for route in (b"x", b"y"):
        ask(world, a, 1, "k", route=route)
        wait(world, a, 2, "k")
    assert len(world.state._loads) == 2
    assert len(world.loads) == 1
    taken = world.state._sessions.loads.taken
    assert taken == 2 * LOAD_BYTES_MIN
    world.load()
    assert only_reply(world, b"y").request == 1
    assert only_reply(world, b"x").request == 2


def test_requests_of_the_same_number_for_different_keys_are_different() -> None:
    world, _ = world_of()
    world.engine_holds("k", "l")
    for key in ("k", "l"):
        world.deliver(key.encode(), Get(0, 0, 5, [key]))
    world.load(b"1")
    world.load(b"2")
    assert only_reply(world, b"k").bodies == [b"1"]
    assert only_reply(world, b"l").bodies == [b"2"]


def test_a_large_value_is_never_away() -> None:
    world, (a,) = world_of("a")
    large = Stored(world.random16(), "bytes", Large(5000, bytes(32)))
    world.engine.bind("k", large)
    ask(world, a, 1, "k")
    assert only_reply(world).bodies == [large.body]


# ---- what needs no bytes ----------------------------------------------------------------------


def test_only_reads_of_the_value_wait_for_its_bytes() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    assert a.set("k", b"x").status is SetStatus.OCCUPIED
    assert a.expire("k", 60.0) is ExpireStatus.DONE
    bound, left = a.ttl("k")
    assert bound and left == pytest.approx(60.0)
    assert world.engine.scan("", "", 10) == ["k"]
    assert a.set("k", b"y", replace=True).status is SetStatus.REPLACED
    assert deleted(world, b, "k") == 1
    assert not world.loads


def test_who_is_refused_a_key_gets_no_value_that_is_away_and_is_no_holder() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    outcome = a.set("k", b"x")
    assert (outcome.status, outcome.updated) == (SetStatus.OCCUPIED, False)
    assert deleted(world, b, "k") == 0


def test_a_value_that_is_away_is_not_taken_back_from_a_former_session() -> None:
    """Its bytes cannot be compared; the Local asks for it when it is read."""
    world, (a,) = world_of("a")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    world.load()
    (reply,) = said(world)
    offered = digest(world.epoch, a.state.session, "bytes", b"v")
    world.deliver(b"x", Offer(world.epoch, a.state.session, 2, ["k"], offered))
    (taken,) = said(world)
    assert (reply.bodies, taken.same) == ([b"v"], [])


# ---- WAIT -------------------------------------------------------------------------------------


def test_a_wait_of_a_value_that_is_away_is_answered_when_it_is_here() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    waiting = begun(a.begin_wait("k", world.now + 10))
    world.load()
    waiting.answer()
    assert body(waiting.result) == b"v"
    assert a.hit("k") == b"v"


def test_a_wait_of_a_key_that_is_bound_and_away_at_once_is_answered_when_it_is_here() -> None:
    world, (a, b) = world_of("a", "b")
    waiting = begun(a.begin_wait("k", world.now + 10))
    b.set("k", b"v")
    assert not waiting.replies
    assert len(world.state._waits) == 0
    world.load()
    waiting.answer()
    assert body(waiting.result) == b"v"


def test_a_wait_goes_on_if_the_key_is_deleted_while_its_value_is_being_loaded() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    waiting = begun(a.begin_wait("k", world.now + 10))
    deleted(world, b, "k")
    world.load()
    assert not waiting.replies
    assert (len(world.state._loads), len(world.state._waits)) == (0, 1)
    b.set("k", b"new")
    world.load()
    waiting.answer()
    assert body(waiting.result) == b"new"


def test_a_wait_that_is_withdrawn_is_not_answered() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    wait(world, a, 1, "k")
    world.deliver(b"x", Unwait(a.state.epoch, a.state.session, 1, "k"))
    world.deliver(b"x", Unwait(a.state.epoch, a.state.session, 2, "k"))
    world.load()
    assert said(world) == []
    assert deleted(world, b, "k") == 0
    assert world.state._sessions.loads.taken == 0


def test_a_wait_for_which_there_is_no_room_when_its_key_is_bound_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "LOADS_BYTES_SHARE", LOAD_BYTES_MIN)
    world, (a, b) = world_of("a", "b")
    world.engine_holds("l")
    ask(world, a, 1, "l", route=b"y")
    wait(world, a, 2, "k")
    b.set("k", b"v")
    assert only_refusal(world) is Refusal.BUSY
    assert len(world.state._waits) == 0


# ---- bounds -----------------------------------------------------------------------------------


def test_a_value_that_is_replaced_again_and_again_is_refused_in_the_end() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    for number in range(loads.LOAD_ROUNDS):
        assert said(world) == []
        b.set("k", b"%d" % number, replace=True)
        world.load(b"of a former token")
    assert only_refusal(world) is Refusal.BUSY
    assert not world.loads
    assert (len(world.state._loads), world.state._sessions.loads.taken) == (0, 0)


def test_an_engine_that_has_a_value_here_when_it_is_looked_at_again_is_not_asked() -> None:
    """Which values are away may change at any time."""
    world, (a,) = world_of("a")
    world.engine_holds("k")
    away = iter([True, False, False])
    world.loading.is_away = lambda key: next(away)  # type: ignore[method-assign]
    ask(world, a, 1, "k")
    assert not world.loads
    world.tick()
    assert only_reply(world).bodies == [b"v"]


@pytest.mark.parametrize("bound", ["LOADS_BYTES_MAX", "LOADS_BYTES_SHARE"])
def test_there_is_a_bound_for_parked_requests(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(sessions, bound, 2 * LOAD_BYTES_MIN)
    monkeypatch.setattr(sessions, "LOADS_BYTES_ASSURED", 0)
    world, (a, b) = world_of("a", "b")
    world.engine_holds(*"klmn")
    for number, key in enumerate("kl"):
        ask(world, a, number, key)
    ask(world, a, 9, "m")
    assert only_refusal(world) is Refusal.BUSY
    ask(world, b, 9, "n")
    assert [each.refusal for each in said(world)] == [Refusal.BUSY] * (bound == "LOADS_BYTES_MAX")
    world.load()
    said(world)
    ask(world, a, 10, "m")
    assert said(world) == [], "there is room again"


def test_the_bytes_that_are_waited_for_count() -> None:
    world, (a,) = world_of("a", limit=1 << 30)
    for number in range(2):
        value = Stored(world.random16(), "bytes", bytes(100_000))
        world.engine.bind(f"k{number}", value)
    ask(world, a, 1, "k0", "k1")
    account = world.state._sessions.loads
    assert 200_000 < account.taken < 210_000
    world.load()
    assert account.taken == 0


def test_a_request_counts_until_its_bytes_have_come_also_if_its_session_ends_before() -> None:
    """Or a peer that asks and leaves could have any number of values loaded at a time."""
    world, (a,) = world_of("a")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    a.state.goodbye(world.now)
    world.settle()
    assert world.state._sessions.loads.taken == LOAD_BYTES_MIN
    world.load()
    assert world.state._sessions.loads.taken == 0


def test_a_request_is_not_parked_for_ever() -> None:
    world, (a, b) = world_of("a", "b")
    world.engine_holds("k", "l")
    ask(world, a, 1, "k")
    assert world.state.wake_at < NEVER
    world.live(loads.LOAD_TIMEOUT / 2, step=1.0)
    ask(world, b, 1, "l", route=b"y")
    world.live(loads.LOAD_TIMEOUT / 2 + 0.1, step=1.0)
    assert only_refusal(world) is Refusal.BUSY
    assert len(world.state._loads) == 1
    world.live(loads.LOAD_TIMEOUT / 2, step=1.0)
    assert [each.refusal for each in said(world, b"y")] == [Refusal.BUSY]
    assert (len(world.state._loads), world.state._loads.wake_at) == (0, NEVER)
    assert world.state._sessions.loads.taken == 0
    world.load()
    world.load()
    assert (said(world), said(world, b"y")) == ([], [])


def test_what_is_still_being_loaded_after_that_is_not_asked_for_again() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    world.live(loads.LOAD_TIMEOUT + 1, step=1.0)
    said(world)
    ask(world, a, 2, "k")
    assert len(world.loads) == 1
    world.load()
    assert only_reply(world).request == 2


def test_many_requests_for_one_value_are_answered_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reads, "ANSWERS_BYTES", 10 * (reads.ANSWER_BYTES + 1))
    world, (a,) = world_of("a")
    world.engine_holds("k")
    for number in range(25):
        ask(world, a, number, "k")
    world.load()
    assert [each.bodies for each in said(world)] == [[b"v"]] * 10
    assert world.state.wake_at <= world.now
    assert not world.state.idle
    former = world.engine.read("k")
    assert former is not None
    world.engine.replace("k", former.token, Stored(world.random16(), "bytes", b"new"))
    world.tick()
    assert said(world) == [], "others may come in between"
    world.tick()
    world.load()
    assert len(said(world)) == 10
    world.tick()
    assert [each.bodies for each in said(world)] == [[b"new"]] * 5
    assert len(world.state._loads) == 0


def test_global_is_not_idle_while_a_request_is_parked() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    assert world.state.idle
    ask(world, a, 1, "k")
    world.state.close()
    assert not world.state.idle
    world.load()
    assert world.state.idle
    assert only_reply(world).bodies == [b"v"], "a Global that ends waits for it"


def test_an_engine_that_raises_leaves_no_request_behind() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    read = world.loading.read

    def broken(key: str) -> Any:
        raise OSError("a bug")

    world.loading.read = broken  # type: ignore[method-assign]
    result: Loaded = b"v"
    with pytest.raises(OSError, match="a bug"):
        world.load(result)
    world.loading.read = read  # type: ignore[method-assign]
    assert (len(world.state._loads), world.state._sessions.loads.taken) == (0, 0)


def test_metrics_tell_of_loads() -> None:
    world, (a,) = world_of("a")
    world.engine_holds("k")
    ask(world, a, 1, "k")
    metrics = world.state.metrics(world.now)
    assert (metrics["loading"], metrics["load_bytes"], metrics["loads"]) == (1, LOAD_BYTES_MIN, 0)
    world.load()
    metrics = world.state.metrics(world.now)
    assert (metrics["loading"], metrics["load_bytes"], metrics["loads"]) == (0, 0, 1)
