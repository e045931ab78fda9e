"""A Local that shares the membership of its host: the sessions in which it writes, and its end."""

from __future__ import annotations

import math

import pytest

from dstore.core.local import operations
from dstore.core.local.membership import LAPSED
from dstore.core.local.operations import LargeBody
from dstore.core.local.state import PRIVATE_AFTER
from dstore.core.local.steps import SendBody, StepResult
from dstore.protocol.messages import NO_SESSION, Goodbye, Large, SetItem, Stored
from tests.unit.core.sharing import detached, host, kinds, open_page, process, sent, stored
from tests.unit.core.world import World

# ---- writing ----------------------------------------------------------------------------------


def test_a_session_to_write_is_opened_by_the_first_write() -> None:
    world = World()
    page, (a,) = host(world, "a")
    world.engine_holds("k")
    a.get("k")
    assert kinds(world) == {"member": 1}
    writing = a.begin_set(("l", b"v"))
    assert writing.waits
    world.settle()
    writing.look()
    assert kinds(world) == {"member": 1, "writer": 1}
    assert writing.message.session == a.state.writer.session != page.session
    assert writing.message.holder == page.session
    writing.finish()
    a.set("m", b"v")
    a.delete("m")
    assert kinds(world) == {"member": 1, "writer": 1}
    assert a.state.wake_at == math.inf


@pytest.mark.parametrize("kind", ["set", "delete"])
def test_a_write_whose_reply_is_lost_is_done_once(kind: str) -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.set("k", b"v")
    b.set("l", b"v")
    writing = a.begin_set(("m", b"1")) if kind == "set" else a.begin_delete("k")
    writing.send()
    writing.replies.clear()
    if kind == "set":
        b.delete("m")
    else:
        b.set("k", b"2")
    writing.time_out()
    first = writing.message
    writing.send()
    writing.answer()
    assert writing.done and writing.error is None
    assert first.write == 2
    assert b.get("m" if kind == "set" else "k") == (None if kind == "set" else b"2")


def test_writes_of_two_processes_have_sessions_of_their_own() -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.set("k", b"v")
    b.set("l", b"v")
    assert a.state.writer.session != b.state.writer.session
    one, other = a.begin_set(("m", b"a")), b.begin_set(("n", b"b"))
    assert one.message.write == other.message.write
    one.finish()
    other.finish()
    assert world.engine.read("m") is not None and world.engine.read("n") is not None


def test_a_write_after_global_has_restarted_opens_another_session() -> None:
    world = World()
    _page, (a,) = host(world, "a")
    a.set("k", b"v")
    former = a.state.writer
    world.start_global()
    open_page(world)
    writing = a.begin_set(("l", b"v"))
    writing.send()
    writing.answer()
    assert a.state.writer is not former
    world.live(0.2)
    writing.look()
    writing.finish()
    assert world.engine.read("l") is not None
    assert a.state.writer.epoch == world.epoch


def test_a_write_that_the_bridge_began_goes_on_in_a_private_membership() -> None:
    world = World()
    _page, a = detached(world)
    writing = a.begin_set(("l", b"v"))
    world.settle()
    writing.look()
    assert kinds(world)["writer"] == 1
    assert writing.message.holder == NO_SESSION
    writing.finish()
    world.live(PRIVATE_AFTER + 0.5)
    assert a.state.session
    a.set("m", b"v")
    assert a.hit("m") == b"v"


def test_a_membership_ends_after_the_writes_that_it_serves() -> None:
    world = World()
    a = process(world, "a")
    world.settle()
    private = a.state.writer
    one, other = a.begin_set(("k", b"v")), a.begin_delete("l")
    page = open_page(world)
    a.state.attach(page, world.now)
    assert a.state.writer is not private
    world.settle()
    assert private.session in [session.id for session in world.state._sessions]
    one.send()
    one.answer()
    assert one.done and one.error is None
    world.settle()
    assert private.session in [session.id for session in world.state._sessions]
    assert a.state.wake_at > world.now, "it waits for the other write, and does not spin"
    other.send()
    other.answer()
    assert other.done and other.error is None
    assert a.state.wake_at == LAPSED
    world.settle()
    assert [session.id for session in world.state._sessions] == [page.session]
    assert a.hit("k") is None, "the value was kept for the membership that has ended"


# ---- closing ----------------------------------------------------------------------------------


def test_closing_never_ends_the_session_of_the_host() -> None:
    world = World()
    page, (a, b) = host(world, "a", "b")
    a.set("k", b"v")
    a.state.watch(1, world.now)
    world.settle()
    assert kinds(world) == {"member": 1, "writer": 1, "observer": 1}
    a.state.lapse()
    a.state.goodbye(world.now)
    goodbyes = [each for each in sent(a) if isinstance(each, Goodbye)]
    assert len(goodbyes) == 2
    for each in goodbyes:
        world.deliver(a.route, each)
    world.settle()
    assert kinds(world) == {"member": 1}
    assert not a.state.leaving and a.state.wake_at == math.inf
    assert a.hit("k") is None
    assert b.state.page is page and b.hit("k") == b"v"


@pytest.mark.parametrize("when", ["attached", "lapsed", "bridging", "joining", "private", "new"])
def test_closing_ends_in_every_state(when: str) -> None:
    world = World()
    if when == "new":
        a = process(world, "a")
    elif when in ("attached", "lapsed"):
        page, (a,) = host(world, "a")
        if when == "lapsed":
            page.lapse()
            a.begin_get("k")
    else:
        _page, a = detached(world)
        if when == "joining":
            world.advance(PRIVATE_AFTER)
            a.tick()
        if when == "private":
            world.live(PRIVATE_AFTER + 1)
    a.state.lapse()
    a.state.goodbye(world.now)
    world.live(1)
    assert not a.state.leaving
    assert a.state.wake_at == math.inf
    assert a.hit("k") is None
    open_page(world)
    a.state.attach(world.page, world.now)
    assert not a.state.session


def test_what_was_looked_up_is_not_kept_for_a_page_that_has_ended() -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    hashed = page.vector.hashed("k")
    former, page = page, open_page(world)
    a.state.attach(page, world.now)
    assert a.state.promote(former, "k", hashed, former.table["k"]) is None
    assert a.state.promote(page, "k", hashed, former.table["k"]) is not None


def test_a_large_value_is_bound_in_the_session_that_has_uploaded_it() -> None:
    """Another session may not bind it, nor upload under the same token."""
    world = World()
    a = process(world, "a")
    world.settle()
    own = a.state.session
    stored = Stored(world.random16(), "bytes", Large(4, bytes(32)))
    bodies = {stored.token: LargeBody(b"body")}
    items = [SetItem("k", stored)]
    now = world.now
    call = a.begin(operations.set_(a.state, items, False, now, now + 5.0, bodies))
    call.send()
    call.answer()
    assert isinstance(call.step, SendBody) and call.step.envelope[1] == own
    page = open_page(world)
    a.state.attach(page, world.now)
    assert not any(isinstance(each, Goodbye) for each in sent(a)), "the upload would be dropped"
    call.resume(StepResult(world.now))
    assert call.message.session == own and call.message.holder in (page.session, own)
    call.give_up()
    assert any(isinstance(each, Goodbye) for each in sent(a))


# ---- numbers ----------------------------------------------------------------------------------


def test_requests_of_two_processes_of_a_session_have_different_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    monkeypatch.setattr(world, "random16", lambda: world._dice.randbytes(16))
    _page, (a, b) = host(world, "a", "b")
    numbers = [member.begin_get(key).message.request for member in (a, b) for key in ("k", "l")]
    assert len(set(numbers)) == 4
    assert abs(numbers[0] - numbers[2]) > 1000
