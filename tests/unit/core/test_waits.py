"""WAIT: a GET that Global answers when there is something to answer."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority import reads, sessions
from dstore.core.authority.effects import NEVER
from dstore.core.local.operations.reading import WAIT_ROUND
from dstore.errors import GlobalUnavailable
from dstore.protocol.messages import Refusal, Unwait, Wait
from tests.unit.core.world import Call, Member, World, body


def begin_wait(member: Member, key: str, timeout: float = 100.0) -> Call:
    now = member.world.now
    return member.begin_wait(key, now + timeout)


def test_the_answer_comes_when_the_key_is_bound_and_is_cached() -> None:
    world = World()
    a, b = world.joined("a", "b")
    call = begin_wait(a, "k")
    assert call.send() is None
    b.set("other", b"x")
    assert not call.replies
    b.set("k", b"v")
    call.answer()
    assert body(call.result) == b"v"
    assert a.hit("k") == b"v"
    assert len(world.state._waits) == 0
    deletion = b.delete("k")
    assert deletion.confirmed == 2, "who waited is a holder"
    assert a.hit("k") is None


def test_a_key_that_is_bound_is_answered_at_once() -> None:
    world = World()
    a, b = world.joined("a", "b")
    b.set("k", b"v")
    call = begin_wait(a, "k")
    call.send()
    call.answer()
    assert not call.result.from_local
    again = begin_wait(a, "k")
    assert again.done
    assert again.result.from_local


def test_a_deletion_between_the_answer_and_its_arrival_keeps_it_out_of_the_cache() -> None:
    world = World()
    a, b = world.joined("a", "b")
    call = begin_wait(a, "k")
    call.send()
    b.set("k", b"v")
    b.delete("k")
    call.answer()
    assert body(call.result) == b"v"
    assert a.hit("k") is None


def test_it_goes_on_in_rounds_and_ends_in_time() -> None:
    world = World()
    (a,) = world.joined("a")
    call = begin_wait(a, "k", timeout=1.5 * WAIT_ROUND)
    for left in (WAIT_ROUND, WAIT_ROUND / 2):
        assert call.message.timeout == pytest.approx(left)
        call.send()
        world.live(left, step=0.1)
        assert not call.done
        call.answer()
    assert call.done
    assert call.result is None
    assert (len(world.state._waits), world.state._waits.wake_at) == (0, NEVER)


def test_a_repeat_is_one_request_and_is_answered_where_it_came_from_last() -> None:
    world = World()
    a, b = world.joined("a", "b")
    call = begin_wait(a, "k")
    call.send()
    call.time_out()
    world.deliver(b"elsewhere", call.message)
    assert len(world.state._waits) == 1
    b.set("k", b"v")
    assert not call.replies
    assert len(world.inboxes[b"elsewhere"]) == 1


def test_what_is_given_up_is_withdrawn_at_global() -> None:
    world = World()
    a, b = world.joined("a", "b")
    call, other = begin_wait(a, "k"), begin_wait(a, "k")
    call.send()
    other.send()
    call.give_up()
    world.settle()
    assert len(world.state._waits) == 1
    b.set("k", b"v")
    assert not call.replies
    other.answer()
    assert body(other.result) == b"v"
    assert a.tick() == [], "what has been answered is not withdrawn"


def test_a_wait_of_a_former_session_is_not_withdrawn_in_the_next() -> None:
    world = World()
    (a,) = world.joined("a")
    call = begin_wait(a, "k")
    call.send()
    world.start_global()
    world.live(3.0)
    call.give_up()
    assert a.tick() == []


def test_withdrawing_what_is_not_there_is_fine() -> None:
    world = World()
    (a,) = world.joined("a")
    begin_wait(a, "k").send()
    for session, request, key in (
        (a.state.session, 99, "k"),
        (a.state.session, 1, "l"),
        (99, 1, "k"),
    ):
        world.deliver(b"x", Unwait(world.epoch, session, request, key))
    assert len(world.state._waits) == 1


def test_a_session_that_has_ended_is_not_answered() -> None:
    world = World()
    a, b = world.joined("a", "b")
    call = begin_wait(a, "k")
    call.send()
    a.state.goodbye(world.now)
    world.settle()
    b.set("k", b"v")
    assert not call.replies
    assert b.delete("k").confirmed == 1


def test_a_wait_joins_the_next_epoch_of_global() -> None:
    world = World()
    (a,) = world.joined("a")
    call = begin_wait(a, "k")
    call.send()
    world.start_global()
    call.time_out()
    call.send()
    call.answer()
    world.live(1.0)
    call.look()
    call.send()
    a.set("k", b"v")
    call.answer()
    assert body(call.result) == b"v"


def test_a_global_that_is_away_is_noticed() -> None:
    world = World()
    (a,) = world.joined("a")
    call = begin_wait(a, "k")
    while not call.done:
        call.time_out(sent=False)
    assert isinstance(call.error, GlobalUnavailable)
    assert not a.state.in_flight


def test_no_other_request_waits_for_a_wait() -> None:
    world = World()
    (a,) = world.joined("a")
    begin_wait(a, "k").send()
    other = a.begin_get("k")
    other.send()
    other.answer()
    assert other.result == {}


def more(world: World, member: Member, number: int, key: str = "more", timeout: float = 1.0) -> Any:
    """Another WAIT; the answer if there is one at once."""
    state = member.state
    world.deliver(b"x", Wait(state.epoch, state.session, number, key, timeout))
    inbox = world.inboxes.get(b"x")
    return inbox.pop() if inbox else None


@pytest.mark.parametrize("bound", ["WAITS_BYTES_MAX", "WAITS_BYTES_SHARE"])
def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(sessions, bound, 2 * reads._cost("more"))
    monkeypatch.setattr(sessions, "WAITS_BYTES_ASSURED", 0)
    world = World()
    a, b = world.joined("a", "b")
    for number in range(2):
        begin_wait(a, f"k{number}").send()
    assert more(world, a, 99).refusal is Refusal.BUSY
    assert (more(world, b, 99) is None) is (bound == "WAITS_BYTES_SHARE")
    world.live(WAIT_ROUND + 1, step=0.5)
    world.inboxes[b"x"].clear()
    assert more(world, a, 100) is None
    b.set("more", b"v")
    assert len(world.state._waits) == 0
    world.inboxes[b"x"].clear()
    assert more(world, a, 101, "else") is None, "what was answered before its time is forgotten"


def test_no_wait_is_for_ever_and_those_of_a_session_end_with_it() -> None:
    world = World()
    a, b = world.joined("a", "b")
    for number in range(10):
        more(world, a, number, f"k{number}", 9e8)
        more(world, b, 7, f"k{number}", 9e8)  # always the same number
    assert len(world.state._waits) == 20
    a.state.goodbye(world.now)
    world.settle()
    assert len(world.state._waits) == 10
    world.live(reads.TIMEOUT_MAX + 1, step=1.0)
    assert (len(world.state._waits), world.state._waits._of) == (0, {})


def test_answered_requests_do_not_pile_up() -> None:
    world = World()
    a, b = world.joined("a", "b")
    for number in range(2 * reads.ENDS_MIN):
        more(world, a, number, "k", 60.0)
        if number % 100 == 99:
            b.set("k", b"v")
            b.delete("k")
            world.inboxes[b"x"].clear()
    assert len(world.state._waits._ends) <= reads.ENDS_MIN + 1
