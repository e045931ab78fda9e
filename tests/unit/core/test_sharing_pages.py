"""A Local that shares the membership of its host: which pages it uses, and when it leaves one."""

from __future__ import annotations

import math

import pytest

from dstore.core.local.membership import LAPSED
from dstore.core.local.state import LOOK_LATER, LOOK_SOON, PRIVATE_AFTER, RETRY_MAX
from dstore.errors import GlobalUnavailable
from dstore.protocol.messages import NO_SESSION, Get, Hello, Kind, Refusal, Refused
from tests.unit.core.sharing import detached, host, kinds, open_page, process, sent
from tests.unit.core.world import LEASE, Member, World, body


def refuse(member: Member, refusal: Refusal = Refusal.UNKNOWN_SESSION) -> None:
    """Global refuses a request in the name of the membership."""
    state = member.state
    state.refused(Refused(state.epoch, state.session, 1, refusal, ""), member.world.now)


# ---- attaching --------------------------------------------------------------------------------


def test_what_one_process_has_read_the_others_have() -> None:
    world = World()
    page, (a, b) = host(world, "a", "b")
    world.engine_holds("k")
    reading = a.begin_get("k")
    assert reading.message.session == page.session
    reading.finish()
    other = b.begin_get("k")
    assert other.done and body(other.result["k"]) == b"v"
    assert other.result["k"].from_local
    assert kinds(world) == {"member": 1}


def test_an_attached_process_that_is_idle_sleeps_for_ever() -> None:
    world = World()
    page, (a,) = host(world, "a")
    world.engine_holds("k")
    a.get("k")
    assert a.state.wake_at == math.inf
    page.lapse()
    assert a.state.wake_at == math.inf
    assert sent(a) == []


def test_a_private_membership_is_given_back_when_there_is_a_page() -> None:
    world = World()
    world.engine_holds("k")
    a = process(world, "a")
    world.settle()
    a.get("k")
    former = a.state.membership
    assert kinds(world) == {"member": 1} and not a.state.bridging
    page = open_page(world)
    world.live(2 * LOOK_LATER)
    assert a.state.page is page and a.state.session == page.session
    assert former.lease_end == LAPSED and not former.entries
    assert [session.id for session in world.state._sessions] == [page.session]
    assert not a.state._leaving


def test_a_local_that_looks_says_hello_only_if_there_is_no_page() -> None:
    world = World()
    page = open_page(world)
    a = world.member("a", looking=True)
    world.settle()
    assert a.state.page is page
    assert kinds(world) == {"member": 1}


def test_what_is_asked_for_first_is_a_page() -> None:
    world = World()
    a = world.member("a", looking=True)
    assert a.tick() == []
    assert a.state.wake_at <= world.now
    (hello,) = a.tick()
    assert isinstance(hello, Hello) and hello.kind is Kind.MEMBER


def test_an_answer_to_a_hello_that_is_not_needed_any_more_is_answered_with_goodbye() -> None:
    world = World()
    a = process(world, "a")
    a.tick()
    a.tick()
    while a.outgoing:
        a.send()
    page = open_page(world)
    a.state.attach(page, world.now)
    assert kinds(world) == {"member": 2}
    world.settle()
    assert a.state.page is page
    assert kinds(world) == {"member": 1}


def test_a_page_whose_lease_has_lapsed_is_not_used() -> None:
    world = World()
    page = open_page(world)
    page.lapse()
    a = process(world, "a")
    assert a.state.page is None
    world.settle()
    assert a.state.session != page.session


def test_a_page_of_another_epoch_than_the_session_is_not_used() -> None:
    world = World()
    page = open_page(world)
    page.silent = True
    world.start_global()
    world.page = None
    a = process(world, "a")
    world.settle()
    assert a.state.epoch == world.epoch
    session = a.state.session
    a.state.attach(page, world.now)
    assert a.state.page is None and a.state.session == session


def test_a_page_that_global_has_refused_is_never_used_again() -> None:
    world = World()
    page, (a,) = host(world, "a")
    page.silent = True
    page.lease_word[0] = 2**63
    refuse(a)
    assert a.state.page is None and a.state.bridging
    world.live(PRIVATE_AFTER + 5)
    assert a.state.page is None
    assert a.state.session not in (NO_SESSION, page.session)
    assert page.lease_word[0] == 2**63, "it is not ours to change"


def test_a_refusal_of_the_epoch_ends_the_page_whatever_was_refused() -> None:
    """A write goes to the new Global; what was cached under the former one must not answer then."""
    world = World()
    page, (a,) = host(world, "a")
    world.engine_holds("k")
    a.set("l", b"v")
    a.get("k")
    page.silent = True
    page.lease_word[0] = 2**63
    world.start_global()
    writing = a.begin_set(("k", b"new"), replace=True)
    writing.send()
    writing.answer()
    assert a.state.page is None
    world.live(1)
    assert a.state.page is None
    writing.look()
    writing.finish()
    assert a.get("k") == b"new"


def test_a_session_of_another_epoch_ends_the_page() -> None:
    """An observer, or a writer, hears first of the restart."""
    for observes in (True, False):
        world = World()
        page, (a,) = host(world, "a")
        page.silent = True
        page.lease_word[0] = 2**63
        world.start_global()
        world.page = None
        if observes:
            a.state.watch(1, world.now)
        else:
            a.begin_set(("k", b"v"))
        world.settle()
        assert a.state.page is None and a.state.bridging


# ---- detaching, and back ----------------------------------------------------------------------


def test_a_void_page_is_given_up_at_once_and_reads_go_on_without_a_session() -> None:
    world = World()
    _page, a = detached(world)
    assert a.state.page is None and a.state.bridging
    assert a.hit("k") is None
    reading = a.begin_get("k")
    assert isinstance(reading.message, Get)
    assert reading.message.session == NO_SESSION
    reading.finish()
    assert body(reading.result["k"]) == b"v"
    assert not a.state.entries, "a read without a session is not cached"
    assert a.state._hello_at == world.now + PRIVATE_AFTER


def test_a_wait_without_a_session_is_answered_too() -> None:
    world = World()
    _page, a = detached(world)
    waiting = a.begin_wait("l", world.now + 5)
    assert waiting.message.session == NO_SESSION
    waiting.send()
    assert not waiting.replies
    waiting.give_up()
    assert any(type(each).__name__ == "Unwait" for each in sent(a))


def test_it_joins_by_itself_after_a_while_without_a_page() -> None:
    world = World()
    _page, a = detached(world)
    world.live(PRIVATE_AFTER - 0.1)
    assert not a.state.session
    world.live(0.2)
    assert a.state.session and not a.state.bridging
    assert a.state.writer.session == a.state.session
    assert a.get("k") == b"v"
    assert a.hit("k") == b"v"


def test_a_new_connection_is_no_reason_to_join_earlier() -> None:
    world = World()
    _page, a = detached(world)
    a.state.reconnected(world.now)
    assert not any(isinstance(each, Hello) for each in sent(a))
    world.advance(PRIVATE_AFTER)
    assert any(isinstance(each, Hello) for each in sent(a))
    a.state.reconnected(world.now)
    assert any(isinstance(each, Hello) for each in sent(a)), "but then to say it again"


def test_it_looks_often_while_bridging_and_never_spins() -> None:
    world = World()
    _page, a = detached(world)
    a.tick()
    assert a.state.wake_at == pytest.approx(world.now + LOOK_SOON)
    world.advance(PRIVATE_AFTER)
    a.tick()
    a.tick()
    assert a.state._look_at == world.now + LOOK_LATER, "Global does not answer"
    assert a.state.wake_at > world.now
    world.live(1)
    assert a.state.session
    a.tick()
    assert world.now < a.state.wake_at <= world.now + LOOK_LATER


def test_it_shares_again_when_there_is_a_new_page() -> None:
    world = World()
    former, a = detached(world)
    page = open_page(world)
    assert page.session != former.session
    world.live(2 * LOOK_SOON)
    assert a.state.page is page and not a.state.bridging
    assert a.get("k") == b"v"
    assert page.table["k"].body == b"v"
    assert a.state.wake_at == math.inf


def test_it_shares_again_from_a_private_membership() -> None:
    world = World()
    _page, a = detached(world)
    world.live(PRIVATE_AFTER + 0.5)
    private = a.state.session
    assert private
    page = open_page(world)
    world.live(2 * LOOK_LATER)
    assert a.state.page is page
    assert private not in [session.id for session in world.state._sessions]


def test_a_short_lapse_is_no_reason_to_leave() -> None:
    world = World()
    page, (a,) = host(world, "a")
    world.engine_holds("k")
    a.get("k")
    page.lapse()
    assert a.hit("k") is None
    asked = a.begin_get("k", "l")
    assert asked.message.session == page.session
    world.live(PRIVATE_AFTER - 0.2)
    assert a.state.page is page
    page.silent = False
    world.tick()
    page.renew(world.now + LEASE)
    world.live(2)
    assert a.state.page is page
    assert a.hit("k") == b"v"
    assert a.state.wake_at == math.inf


@pytest.mark.parametrize("keys", [["k"], ["k", "l"]])
def test_a_long_lapse_ends_in_a_private_membership(keys: list[str]) -> None:
    world = World()
    page, (a,) = host(world, "a")
    page.lapse()
    a.begin_get(*keys)
    assert a.state.wake_at <= world.now + LOOK_SOON
    world.live(PRIVATE_AFTER + 0.5)
    assert a.state.page is None
    assert a.state.session not in (NO_SESSION, page.session)


def test_a_local_that_must_share_never_joins_by_itself() -> None:
    world = World()
    page, (a,) = host(world, "a", joining=False)
    page.void()
    world.page = None
    a.begin_get("k")
    world.live(PRIVATE_AFTER + RETRY_MAX)
    assert not a.state.session
    waiting = a.begin_get("k")
    assert waiting.waits, "calls fail while there is no page"
    b = process(world, "b", joining=False)
    reading = b.begin_get("k", timeout=1.0)
    reading.time_out()
    assert isinstance(reading.error, GlobalUnavailable)
    open_page(world)
    world.live(2 * LOOK_LATER)
    waiting.look()
    assert waiting.finish() == {}
    assert [each for each in sent(b) if isinstance(each, Hello)] == []
