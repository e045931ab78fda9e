"""A Local that shares the membership of its host: when it may, what it asks, and what it keeps."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from dstore.client.host_reader import PureHostReader
from dstore.core.local import operations
from dstore.core.local.cache import MappedBody
from dstore.core.local.membership import LAPSED, PureMembership, lease_word
from dstore.core.local.operations import LargeBody, SetOutcome
from dstore.core.local.shared import Record
from dstore.core.local.state import LOOK_LATER, LOOK_SOON, PRIVATE_AFTER, RETRY_MAX
from dstore.core.local.steps import SendBody, StepResult
from dstore.errors import GlobalUnavailable
from dstore.protocol.messages import (
    NO_SESSION,
    Broadcast,
    Found,
    Get,
    Goodbye,
    Hello,
    Kind,
    Large,
    Refusal,
    Refused,
    SetItem,
    SetStatus,
    Stored,
)
from dstore.runtime import clock
from tests.unit.core.sharing import HostPage, host, kinds, open_page, process
from tests.unit.core.world import LEASE, Member, World, body

VALUE = (bytes(16), "bytes", b"old")
OLD = Stored(*VALUE)


def sent(member: Member) -> list[Any]:
    """What it says now on its control channel. Nothing is delivered."""
    member.tick()
    if member.state.wake_at <= member.world.now:
        member.tick()
    messages = list(member.outgoing)
    member.outgoing.clear()
    return messages


def refuse(member: Member, refusal: Refusal = Refusal.UNKNOWN_SESSION) -> None:
    """Global refuses a request in the name of the membership."""
    state = member.state
    state.refused(Refused(state.epoch, state.session, 1, refusal, ""), member.world.now)


# ---- attaching ------------------------------------------------------------------------------


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


# ---- detaching, and back --------------------------------------------------------------------


def detached(world: World) -> tuple[HostPage, Member]:
    """A process whose page has ended, as it has noticed."""
    page, (a,) = host(world, "a")
    world.engine_holds("k")
    a.get("k")
    page.void()
    page.silent = True
    world.page = None
    a.begin_get("k")
    a.tick()
    return page, a


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


# ---- a forked child -------------------------------------------------------------------------


def parent_with_entries(world: World, **settings: Any) -> tuple[HostPage, Member]:
    page, (a,) = host(world, "a", **settings)
    for key in ("k", "l", "m"):
        a.state.cache.insert(key, 0, *VALUE, page.vector.bucket(key))
    return page, a


def test_a_child_goes_on_with_the_entries_of_its_parent() -> None:
    world = World()
    page, a = parent_with_entries(world)
    child = world.member("child", looking=True)
    again = HostPage(world, page.session, page.vector.buckets)
    again.vector, again.lease_word = page.vector, page.lease_word
    child.state.inherit(again, a.state.membership, world.now)
    assert child.hit("k") == b"old"
    page.note("k", 1)
    assert child.hit("k") is None
    assert child.hit("l") == b"old"
    assert child.state.membership.words is again.vector.words
    assert [entry.key for entry in child.state.cache] == ["k", "l", "m"]


def test_a_child_of_a_thread_in_the_middle_of_an_insertion_has_a_whole_cache() -> None:
    world = World()
    page, a = parent_with_entries(world)
    cache = a.state.cache
    half = cache.made("n", 0, *VALUE, page.vector.bucket("n"))
    half.older = cache._newest  # the dictionary has it, the list does not
    cache.entries["n"] = half
    child = world.member("child", cache_bytes=half.size * 3, looking=True)
    child.state.inherit(page, a.state.membership, world.now)
    own = child.state.cache
    assert [entry.key for entry in own] == ["l", "m", "n"], "the oldest was evicted"
    assert own.size == sum(entry.size for entry in own)
    assert own.size <= own.limit
    for key in ("l", "m", "n"):
        assert own.discard(key)
    assert own.size == 0 and list(own) == []


def test_a_child_inherits_nothing_of_another_membership() -> None:
    """A thread of the parent has switched the page, and not yet the membership."""
    world = World()
    _page, a = parent_with_entries(world)
    former = a.state.membership
    page = open_page(world)
    child = world.member("child", looking=True)
    child.state.inherit(page, former, world.now)
    assert child.state.page is page
    assert child.state.membership is not former
    assert not child.state.entries


def test_a_child_that_has_to_report_deletions_inherits_no_entries() -> None:
    """What was invalidated before its observer has begun would not be reported."""
    world = World()
    page, a = parent_with_entries(world)
    child = world.member("child", looking=True, observing=True)
    child.state.inherit(page, a.state.membership, world.now)
    assert child.state.page is page
    assert not child.state.entries


# ---- hits -----------------------------------------------------------------------------------


def stored(page: HostPage, key: str, seq: int = 0) -> None:
    """Another process puts a value into the host cache."""
    page.table[key] = Record(seq, *VALUE)


def test_a_value_is_kept_by_the_process_from_the_second_read_on() -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    assert a.hit("k") == b"old"
    assert "k" not in a.state.entries
    assert a.hit("k") == b"old"
    assert "k" in a.state.entries
    del page.table["k"]
    assert a.hit("k") == b"old"


@pytest.mark.parametrize("kept", [True, False], ids=["entry", "host cache"])
def test_a_value_is_valid_if_no_word_is_above_its_number(kept: bool) -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k", 5)
    if kept:
        a.state.cache.insert("k", 5, *VALUE, page.vector.bucket("k"))
        page.table.clear()
    page.note("k", 5)
    assert a.hit("k") == b"old"
    page.note("k", 6)
    assert a.hit("k") is None
    assert a.begin_get("k").message.keys == ["k"]


def test_the_host_cache_serves_where_the_entry_is_out_of_date() -> None:
    world = World()
    page, (a,) = host(world, "a")
    a.state.cache.insert("k", 0, *VALUE, page.vector.bucket("k"))
    page.note("k", 1)
    page.table["k"] = Record(1, bytes(16), "bytes", b"new")
    assert a.hit("k") == b"new"


@pytest.mark.parametrize("kept", [True, False], ids=["entry", "host cache"])
def test_the_words_are_read_before_the_clock(kept: bool) -> None:
    """The process stands still in between; the lease ends, and the page is not written any more."""
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    if kept:
        a.state.cache.insert("k", 0, *VALUE, page.vector.bucket("k"))
        page.table.clear()
    page.slow(page.lapse)
    assert a.hit("k") is None


@pytest.mark.parametrize("kept", [True, False], ids=["entry", "host cache"])
def test_the_lease_is_noted_before_the_words_are_read(kept: bool) -> None:
    """In between: the lease lapses, the key is deleted, and the page is renewed, words first."""
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    if kept:
        a.state.cache.insert("k", 0, *VALUE, page.vector.bucket("k"))
        page.table.clear()

    def renewed() -> None:
        page.lapse()
        page.silent = False
        page.renew(world.now + LEASE)

    page.slow(renewed)
    assert a.hit("k") is None


def test_stale_values_are_those_of_which_no_deletion_is_known() -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    stored(page, "l")
    page.note("l", 1)
    page.lapse()
    assert a.state.hit("k", world.now) is None
    assert a.begin_get("k", stale_ok=True).result["k"].from_local
    many = a.begin_get("k", "l", stale_ok=True)
    assert many.message.keys == ["l"]


def test_many_keys_are_read_from_entries_host_cache_and_global() -> None:
    world = World()
    page, (a, b) = host(world, "a", "b")
    world.engine_holds("k")
    stored(page, "l")
    a.state.cache.insert("m", 0, *VALUE, page.vector.bucket("m"))
    reading = a.begin_get("k", "l", "m", "n")
    assert reading.message.keys == ["k", "n"]
    result = reading.finish()
    assert {key: body(answer) for key, answer in result.items()} == {
        "k": b"v", "l": b"old", "m": b"old",
    }  # fmt: skip
    assert {key for key, answer in result.items() if answer.from_local} == {"l", "m"}
    again = b.begin_get("k", "l")
    assert again.done and set(again.result) == {"k", "l"}


def test_a_key_of_the_host_cache_is_known_to_be_occupied() -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")
    outcomes = a.begin_set(("k", b"new"))
    assert outcomes.done
    assert outcomes.result["k"].status is SetStatus.OCCUPIED and outcomes.result["k"].local


# ---- filling --------------------------------------------------------------------------------


def test_a_reply_is_dead_on_arrival_if_its_word_was_raised_meanwhile() -> None:
    world = World()
    page, (a, b) = host(world, "a", "b")
    world.engine_holds("k", "l", "m")
    reading, many = a.begin_get("k"), a.begin_get("l", "m")
    reading.send()
    many.send()
    b.begin_delete("k", "l").finish()
    reading.answer()
    many.answer()
    assert body(reading.result["k"]) == body(many.result["l"]) == b"v"
    assert set(page.table) == {"m"}
    assert a.hit("k") is None and a.hit("l") is None


@pytest.mark.parametrize("keys", [["k"], ["k", "l"]])
def test_a_value_is_kept_under_the_membership_that_asked_only(keys: list[str]) -> None:
    """The next page may have lower words: numbers of different sessions are never compared."""
    world = World()
    former, (a,) = host(world, "a")
    world.engine_holds(*keys)
    reading = a.begin_get(*keys)
    reading.send()
    former.void()
    page = open_page(world)
    a.state.detach(world.now)
    a.state.attach(page, world.now)
    reading.answer()
    assert body(reading.result["k"]) == b"v"
    assert not a.state.entries and not page.table and not former.table


def test_a_value_that_the_host_cache_does_not_take_is_kept_by_the_process() -> None:
    world = World()
    page, (a,) = host(world, "a")
    page.full = True
    world.engine_holds("k", "l", "m")
    a.get("k")
    a.begin_get("l", "m").finish()
    assert set(a.state.entries) == {"k", "l", "m"}
    assert a.hit("l") == b"v"


def test_what_is_set_is_there_for_the_others() -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.set("k", b"1")
    assert b.hit("k") == b"1"
    b.set("k", b"2", replace=True)
    assert a.hit("k") == b.hit("k") == b"2"
    a.delete("k")
    assert a.hit("k") is None and b.hit("k") is None


def large(world: World, shared: bool = True) -> tuple[Found, MappedBody]:
    return Found(3, True, Stored(world.random16(), "bytes", b"")), MappedBody(
        memoryview(bytes(2000)), shared
    )


def test_a_large_value_follows_the_words_too() -> None:
    world = World()
    page, (a,) = host(world, "a")
    found, mapped = large(world)
    entry = a.state.fill(a.state.membership, "k", found, mapped)
    assert entry is not None and entry.bucket == page.vector.bucket("k")
    assert not a.state.drop_dead(entry)
    page.note("k", 4)
    assert a.hit("k") is None
    assert a.state.drop_dead(entry), "its file must not be kept"
    assert not a.state.cache.shared and not a.state.entries
    assert a.state.fill(a.state.membership, "k", found, mapped) is None
    a.tick()
    assert a.given_up == [found.stored.token]


# ---- observers ------------------------------------------------------------------------------


def test_a_watch_has_a_session_that_observes_while_it_lasts() -> None:
    world = World()
    _page, (a,) = host(world, "a")
    a.state.watch(1, world.now)
    world.settle()
    assert kinds(world) == {"member": 1, "observer": 1}
    assert a.told.pop() == (0, None)
    world.live(3 * LEASE)
    assert kinds(world) == {"member": 1, "observer": 1}, "it is kept up"
    a.state.watching.end(1)
    assert a.state.wake_at == LAPSED
    world.settle()
    assert kinds(world) == {"member": 1}
    assert a.state.wake_at == math.inf


def test_an_observer_announces_and_repairs_and_acknowledges_nothing() -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.state.watch(1, world.now)
    world.settle()
    a.told.clear()
    b.set("k", b"v")
    b.set("l", b"v")
    b.begin_delete("k").send()
    world.publish()
    a.published.clear()  # lost
    b.begin_delete("l").send()
    world.publish()
    a.hear()
    messages = sent(a)
    assert {type(each).__name__ for each in messages} == {"Sync"}
    for each in messages:
        world.deliver(a.route, each)
    world.live(LEASE)
    assert [key for _, key in a.told] == ["k", "l"]
    assert a.state._acked <= a.state.applied


def test_an_observer_acknowledges_nothing_at_once() -> None:
    world = World()
    _page, (a,) = host(world, "a")
    a.state.watch(1, world.now)
    world.settle()
    a.receive(Broadcast(world.epoch, 1, ["k"], True))
    assert a.state.applied == 1
    assert sent(a) == []
    assert a.state.wake_at > world.now


def test_a_deletion_does_not_wait_for_an_observer() -> None:
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.state.watch(1, world.now)
    world.settle()
    b.set("k", b"v")
    deletion = b.begin_delete("k")
    assert deletion.send() is not None


def test_watchers_look_again_after_each_change_of_membership() -> None:
    world = World()
    page, (a,) = host(world, "a")
    a.state.watch(1, world.now)
    world.settle()
    page.void()
    world.page = None
    a.told.clear()
    a.begin_get("k")
    world.live(PRIVATE_AFTER + 1)
    assert a.state.session and a.told == [(0, None)]
    a.told.clear()
    page = open_page(world)
    world.live(2 * LOOK_LATER)
    assert a.state.page is page and a.told == [(0, None)]


def test_what_was_committed_is_forgotten_with_the_session_that_observed() -> None:
    """The next one may count from lower numbers, of which none is committed."""
    world = World()
    _page, (a, b) = host(world, "a", "b")
    a.state.watch(1, world.now)
    world.settle()
    b.set("k", b"v")
    b.delete("k")
    world.live(LEASE)
    watching, joined = a.state.watching, a.state.joined
    assert watching._committed == 1
    a.receive(Refused(joined.epoch, joined.session, 0, Refusal.UNKNOWN_SESSION, ""))
    assert watching._committed == 0
    assert a.state.page is not None
    a.told.clear()
    world.settle()
    assert a.told == [(0, None)]


# ---- reporting ------------------------------------------------------------------------------


def reporting(world: World) -> tuple[HostPage, Member, Member]:
    page, (a,) = host(world, "a", observing=True)
    b = process(world, "b")
    world.settle()
    assert kinds(world) == {"member": 1, "observer": 1}
    return page, a, b


def test_what_was_cached_and_is_deleted_is_reported() -> None:
    world = World()
    page, a, b = reporting(world)
    world.engine_holds("k", "l", "m", "n")
    a.get("k")
    a.begin_get("l", "m").finish()
    stored(page, "n")
    assert a.hit("n") == b"old", "from the first read on it is cached here"
    b.begin_delete("k", "m", "n", "o").finish()
    world.publish()
    world.settle()
    assert sorted(a.dropped) == ["k", "m", "n"]
    assert set(a.state.entries) == {"l"}


def test_what_cannot_be_reported_is_not_kept() -> None:
    """There is no observer yet; or it has heard of the deletion, before the page."""
    world = World()
    page, (a,) = host(world, "a", observing=True)
    stored(page, "k")
    assert a.hit("k") == b"old"
    assert not a.state.entries
    world.settle()
    a.state._apply(1, ["k"])
    assert a.hit("k") == b"old"
    found, mapped = large(world)
    assert a.state.fill(a.state.membership, "k", found._replace(seq=0), mapped) is None
    world.engine_holds("k")
    assert not a.state.entries
    a.state.fill(a.state.membership, "k", Found(1, True, OLD))
    assert "k" in a.state.entries


@pytest.mark.at_once
def test_who_is_refused_a_key_here_hears_of_its_deletion() -> None:
    """Before there is an observer, Global is asked, and says that nothing is cached here."""
    world = World()
    page, (a,) = host(world, "a", observing=True)
    world.engine_holds("k")
    stored(page, "k")
    writing = a.begin_set(("k", b"v"))
    world.settle()
    assert a.state.joined.session, "it has joined meanwhile"
    writing.look()
    assert writing.finish() == {"k": SetOutcome(SetStatus.OCCUPIED, updated=True)}
    assert "k" in a.state.entries
    assert a.begin_set(("k", b"v")).result == {"k": SetOutcome(SetStatus.OCCUPIED, local=True)}


def test_an_observer_reports_the_deletion_that_was_pending_when_it_joined() -> None:
    world = World()
    page, (a,) = host(world, "a", observing=True)
    world.members.remove(a)
    (reader,), writer = world.joined("reader"), process(world, "writer")
    world.engine_holds("k")
    reader.get("k")  # a holder elsewhere, which does not acknowledge
    stored(page, "k")
    world.members.remove(reader)
    deleting = writer.begin_delete("k")
    world.settle()
    deleting.look()
    deleting.send()
    assert not page.vector.words[page.vector.bucket("k")]
    a.tick()
    a.send()
    a.listen()
    assert a.state.joined.session
    assert a.hit("k") == b"old", "a deletion that is not confirmed"
    assert "k" in a.state.entries
    world.members += [a, reader]
    world.settle()
    assert a.dropped == ["k"]


def test_an_observer_that_begins_again_keeps_nothing() -> None:
    world = World()
    _page, a, _b = reporting(world)
    world.engine_holds("k")
    a.get("k")
    assert "k" in a.state.entries
    joined = a.state.joined
    a.receive(Refused(joined.epoch, joined.session, 0, Refusal.UNKNOWN_SESSION, ""))
    assert not a.state.entries
    world.settle()
    a.state._flush(1)
    a.state.fill(a.state.membership, "k", Found(0, True, OLD))
    assert not a.state.entries


# ---- writing --------------------------------------------------------------------------------


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


# ---- closing --------------------------------------------------------------------------------


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


# ---- numbers --------------------------------------------------------------------------------


def test_requests_of_two_processes_of_a_session_have_different_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    monkeypatch.setattr(world, "random16", lambda: world._dice.randbytes(16))
    _page, (a, b) = host(world, "a", "b")
    numbers = [member.begin_get(key).message.request for member in (a, b) for key in ("k", "l")]
    assert len(set(numbers)) == 4
    assert abs(numbers[0] - numbers[2]) > 1000


# ---- the look at the host cache that takes no lock --------------------------------------------


def look(state: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Do what ``Node._find_on_host`` does, with the reader in Python."""
    monkeypatch.setattr(clock, "now_ns", lambda: lease_word(world.now))
    membership, page = state.membership, state.page
    if membership.words is not page.vector.words:
        return None
    reader = object.__new__(PureHostReader)
    reader._hashed, reader._find = page.vector.hashed, page.find
    return reader.read(with_words(membership, page), "k")


@pytest.mark.parametrize(("word", "valid"), [(4, True), (5, True), (6, False)])
def test_a_look_at_the_host_cache_compares_the_word(
    word: int, valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k", 5)
    page.note("k", word)
    found = look(a.state, world, monkeypatch)
    assert (found == (page.vector.hashed("k"), page.table["k"])) is valid


@pytest.mark.parametrize("where", ["table", "word"])
@pytest.mark.parametrize("renewed", [False, True])
def test_a_look_at_the_host_cache_notes_the_lease_first_and_reads_the_clock_last(
    where: str, renewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between the lease ends; the key may be deleted then, and the page may be renewed."""
    world = World()
    page, (a,) = host(world, "a")
    stored(page, "k")

    def interrupted() -> None:
        page.lapse()
        if renewed:
            page.silent = False
            page.renew(world.now + LEASE)

    if where == "table":
        page.found = interrupted
    else:
        page.slow(interrupted)
    state = SimpleNamespace(membership=with_words(a.state.membership, page), page=page)
    assert look(state, world, monkeypatch) is None


def with_words(membership: Any, page: HostPage) -> PureMembership:
    """The same membership, whose words are those of the page, in Python."""
    changed = PureMembership(membership.entries, page.vector.words, page.lease_word)
    changed.epoch, changed.session = membership.epoch, membership.session
    return changed


@pytest.mark.parametrize("which", [0, 1])
def test_a_look_at_the_host_cache_in_the_middle_of_a_switch_finds_nothing(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of one session with the lease of another."""
    world = World()
    former, (a,) = host(world, "a")
    old = a.state.membership
    page = open_page(world)
    a.state.attach(page, world.now)
    former.lease_word[0] = page.lease_word[0]
    for each in (former, page):
        stored(each, "k")
    mixed = [(old, page), (a.state.membership, former)][which]
    assert look(SimpleNamespace(membership=mixed[0], page=mixed[1]), world, monkeypatch) is None
    assert look(a.state, world, monkeypatch) is not None


def test_a_child_looks_at_the_host_cache_like_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    page, a = parent_with_entries(world)
    stored(page, "k")
    child = world.member("child", looking=True)
    again = HostPage(world, page.session, page.vector.buckets)
    again.vector.words = page.vector.words[:]  # the same words, by another view
    again.lease_word, again.table = page.lease_word, page.table
    child.state.inherit(again, a.state.membership, world.now)
    assert look(child.state, world, monkeypatch) is not None
