"""Revalidation: what a Local had in a session that has ended, offered to Global in the next one."""

from __future__ import annotations

import math

import pytest

from dstore.core.local.former import PAUSE, Former
from dstore.core.local.state import LOOK_SOON
from dstore.core.local.steps import Request
from dstore.errors import OutcomeUnknown
from dstore.protocol.messages import DelStatus, Found, Hello, Kind, Offer, Offered, Stored, Welcome
from dstore.protocol.offers import OFFER_BYTES_MAX, OFFER_KEYS_MAX, digest
from tests.unit.core.revalidation import answer, lost, offered, restart
from tests.unit.core.sharing import open_page
from tests.unit.core.test_owner import OwnerMember
from tests.unit.core.world import LEASE, World

pytestmark = pytest.mark.at_once
"""What is offered is compared with values that are here."""


def gets(world: World) -> int:
    return world.state.counters["gets"]


# ---- what is kept -----------------------------------------------------------------------------


def test_a_restart_of_a_durable_global_moves_no_data() -> None:
    world = World(durable=True)
    a, b = world.joined("a", "b")
    world.engine_holds(*"klm")
    a.begin_get("k", "l", "m").finish()
    b.get("k")
    restart(world, a, b)
    assert a.state.epoch == world.epoch
    before = gets(world)
    assert [a.hit(key) for key in "klm"] == [b"v"] * 3
    assert b.hit("k") == b"v"
    assert gets(world) == before == 0
    assert a.state.counters["revalidated"] == 3
    assert world.state.counters["revalidated"] == 4


def test_after_a_lost_session_too() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    before = gets(world)
    lost(a)
    assert not a.state.entries
    world.settle()
    assert a.hit("k") == b"v"
    assert gets(world) == before


def test_a_volatile_global_has_nothing_after_a_restart_and_is_not_asked() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    restart(world, a)
    assert a.state.session
    assert world.state.counters["offers"] == 0
    assert not a.state.entries


def test_what_was_changed_or_deleted_meanwhile_is_not_taken_back() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k", "l", "m")
    a.begin_get("k", "l", "m").finish()
    lost(a)
    for key, new in (("k", b"other"), ("l", None)):
        old = world.engine.read(key)
        assert old is not None
        world.engine.remove(key, old.token)
        if new is not None:
            world.engine.bind(key, Stored(old.token, "bytes", new))  # a token that is used twice
    world.settle()
    assert set(a.state.entries) == {"m"}
    assert a.get("k") == b"other"
    assert a.get("l") is None


def test_an_equal_value_of_another_write_is_as_good_and_has_its_token() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    lost(a)
    old = world.engine.read("k")
    assert old is not None
    world.engine.remove("k", old.token)
    world.engine_holds("k")
    world.settle()
    value = a.state.entries["k"].value
    assert isinstance(value, Stored)
    assert value == world.engine.read("k")
    assert value.token != old.token


def test_the_codec_counts_as_well() -> None:
    body = b"v"
    assert digest(1, 2, "bytes", body) != digest(1, 2, "text", body)
    assert digest(1, 2, "bytes", body) != digest(1, 2, "byte", b"s" + body)
    assert digest(1, 2, "bytes", body) != digest(1, 3, "bytes", body)


# ---- an offer is an ordinary read -------------------------------------------------------------


def test_who_has_taken_back_a_value_is_notified_of_its_deletion() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.engine_holds("k")
    a.get("k")
    lost(a)
    world.settle()
    assert a.hit("k") == b"v"
    world.members.remove(a)
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    assert not deleting.replies, "the deletion waits for a holder"
    world.members.append(a)
    world.settle()
    deleting.answer()
    assert deleting.result["k"].status is DelStatus.DELETED
    assert a.hit("k") is None


def test_a_value_that_is_being_deleted_is_not_taken_back() -> None:
    world = World()
    a, b, c = world.joined("a", "b", "c")
    world.engine_holds("k")
    a.get("k")
    c.get("k")
    world.members.remove(c)  # it does not acknowledge
    deleting = b.begin_delete("k")
    deleting.send()
    offer = offered(a)
    assert offer.keys == ["k"]
    assert answer(world, a, offer).same == []


def test_the_answer_that_comes_after_an_invalidation_is_not_stored() -> None:
    world = World()
    a, b = world.joined("a", "b")
    world.engine_holds("k")
    a.get("k")
    reply = answer(world, a, offered(a))
    assert reply.same == [0]
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    assert a.state.applied == 1
    a.receive(reply)
    assert not a.state.entries


def test_the_answer_to_an_offer_of_a_former_session_is_not_stored() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    reply = answer(world, a, offered(a))
    lost(a)
    world.members.remove(a)
    a.receive(reply)
    assert not a.state.entries


def test_an_answer_that_names_what_was_not_offered_changes_nothing() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    offer = offered(a)
    envelope = offer[:3]
    a.receive(Offered(*envelope[:2], offer.request + 1, 0, [0], bytes(16)))
    assert not a.state.entries
    a.receive(Offered(*envelope, 0, [1, 999], bytes(32)))
    assert not a.state.entries


@pytest.mark.parametrize("kind", [Kind.OBSERVER, Kind.WRITER])
def test_what_holds_nothing_takes_nothing_back(kind: Kind) -> None:
    world = World()
    world.engine_holds("k")
    world.deliver(b"it", Hello(bytes(16), 0, 0, "it", kind))
    welcome = world.inboxes[b"it"].pop()
    assert isinstance(welcome, Welcome)
    found = digest(world.epoch, welcome.session, "bytes", b"v")
    world.deliver(b"it", Offer(world.epoch, welcome.session, 1, ["k"], found))
    reply = world.inboxes[b"it"].pop()
    assert isinstance(reply, Offered)
    assert reply.same == []


# ---- bounds -----------------------------------------------------------------------------------


def test_offers_are_bounded_and_come_one_by_one_with_pauses() -> None:
    world = World()
    (a,) = world.joined("a")
    keys = [f"k{number}" for number in range(2 * OFFER_KEYS_MAX + 1)]
    world.engine_holds(*keys)
    a.begin_get(*keys).finish()
    first = offered(a)
    assert first.keys == keys[: -OFFER_KEYS_MAX - 1 : -1], "the newest first"
    assert not any(isinstance(each, Offer) for each in a.tick()), "one at a time"
    reply = answer(world, a, first)
    world.advance(0.01)
    a.receive(reply)
    assert len(a.state.entries) == OFFER_KEYS_MAX
    assert a.state.former.due == pytest.approx(world.now + PAUSE * 0.01)
    assert not any(isinstance(each, Offer) for each in a.tick())
    world.live(1.0)
    assert set(a.state.entries) == set(keys)
    assert world.state.counters["offers"] == 3
    assert a.state.former.due == math.inf


def test_global_looks_at_no_more_than_the_bounds() -> None:
    world = World()
    (a,) = world.joined("a")
    session = a.state.session
    keys = [f"k{number}" for number in range(OFFER_KEYS_MAX + 1)]
    world.engine_holds(*keys)
    one = digest(world.epoch, session, "bytes", b"v")
    reply = answer(world, a, Offer(world.epoch, session, 1, keys, one * len(keys)))
    assert reply.same == list(range(OFFER_KEYS_MAX))
    body = bytes(OFFER_BYTES_MAX // 2)
    two = [f"large {number}" for number in range(3)]
    for key in two:
        world.engine.bind(key, Stored(world.random16(), "bytes", body))
    many = digest(world.epoch, session, "bytes", body)
    reply = answer(world, a, Offer(world.epoch, session, 2, two, many * 3))
    assert reply.same == [0, 1]


def test_a_local_offers_no_more_bytes_than_global_looks_at() -> None:
    former = Former()
    former.keep(
        [(f"k{number}", "bytes", bytes(OFFER_BYTES_MAX // 2)) for number in range(4)], (), 1
    )
    former.begin(1.0)
    offer = former.offer((1, 2, 3), LEASE, 1.0)
    assert offer is not None
    assert offer.keys == ["k0", "k1", "k2"]


def test_an_offer_that_is_not_answered_is_the_last_one() -> None:
    world = World()
    (a,) = world.joined("a")
    keys = [f"k{number}" for number in range(OFFER_KEYS_MAX + 1)]
    world.engine_holds(*keys)
    a.begin_get(*keys).finish()
    reply = answer(world, a, offered(a))
    a.outgoing.clear()
    world.members.remove(a)
    world.advance(1.1 * LEASE)
    assert not any(isinstance(each, Offer) for each in a.tick())
    assert a.state.former.due == math.inf
    a.receive(reply)
    assert not a.state.entries


def test_an_offer_is_made_once_more_on_a_new_connection() -> None:
    world = World()
    (a,) = world.joined("a")
    world.engine_holds("k")
    a.get("k")
    reply = answer(world, a, offered(a))
    a.state.reconnected(world.now)
    world.settle()
    assert world.state.counters["offers"] == 2
    entry = a.state.entries["k"]
    a.receive(reply)
    assert a.state.entries["k"] is entry, "the answer to the first is not needed any more"


def test_nothing_is_kept_for_a_page_or_after_a_goodbye() -> None:
    world = World()
    world.engine_holds("k")
    page_user = world.member("a", looking=True)
    world.settle()
    page_user.get("k")
    lost(page_user)
    page = open_page(world)
    world.advance(LOOK_SOON)
    world.settle()
    assert page_user.state.page is page
    (b,) = world.joined("b")
    b.get("k")
    lost(b)
    b.state.goodbye(world.now)
    world.settle()
    for member in (page_user, b):
        member.state.former.begin(world.now)
        assert member.state.former.offer((1, 1, 1), LEASE, world.now) is None
    assert world.state.counters["offers"] == 0


# ---- the owner of a page ----------------------------------------------------------------------


def test_the_host_cache_of_an_ended_session_goes_into_the_next_one() -> None:
    world = World(durable=True)
    world.engine_holds("k", "l")
    owner = OwnerMember(world)
    world.settle()
    first = owner.page
    for key in "kl":
        stored = world.engine.read(key)
        assert stored is not None
        first.table[key] = Found(0, True, stored)
    restart(world, owner)
    assert owner.page is not first
    assert set(owner.page.table) == {"k", "l"}
    assert owner.page.table["k"].stored == world.engine.read("k")
    (b,) = world.joined("b")
    deleting = b.begin_delete("k")
    deleting.send()
    world.settle()
    assert owner.page.words["k"] == 1, "it is a holder"


@pytest.mark.parametrize("failing", ["put", "values"])
def test_a_host_cache_that_cannot_be_used_costs_only_its_values(failing: str) -> None:
    world = World(durable=True)
    world.engine_holds("k")
    owner = OwnerMember(world)
    world.settle()
    stored = world.engine.read("k")
    assert stored is not None
    owner.page.table["k"] = Found(0, True, stored)
    first = owner.page
    owner.failing.add(failing)
    restart(world, owner)
    assert first.end == 0.0
    assert owner.page is not first
    assert owner.page.end > world.now
    assert owner.state.counters["revalidated"] == 0


# ---- the quiet period -------------------------------------------------------------------------


def test_welcome_tells_what_is_left_of_the_quiet_period_and_writes_wait_for_it() -> None:
    world = World(durable=True, quiet=30.0)
    world.engine_holds("k")
    world.advance(10.0)
    (a,) = world.joined("a")
    assert a.state.quiet_until == world.now + 20.0
    deleting = a.begin_delete("k", timeout=5.0)
    deleting.send()
    while isinstance(deleting.step, Request) and deleting.step.until < world.quiet_until:
        world.live(deleting.step.until - world.now, step=0.5)
        deleting.time_out()
        deleting.send()
    world.live(world.quiet_until - world.now)
    world.commit()
    deleting.answer()
    assert deleting.result["k"].status is DelStatus.DELETED


def test_a_write_does_not_wait_for_a_global_that_is_lost_in_its_quiet_period() -> None:
    world = World(durable=True, quiet=1000.0)
    world.engine_holds("k")
    (a,) = world.joined("a")
    deleting = a.begin_delete("k", timeout=5.0)
    deleting.send()
    world.members.remove(a)
    begun = world.now
    while not deleting.done:
        deleting.time_out()
    assert isinstance(deleting.error, OutcomeUnknown)
    assert world.now <= begun + 5.0 + 2 * LEASE


def test_a_write_that_had_no_time_left_does_not_ask_without_a_pause() -> None:
    world = World(durable=True, quiet=20.0)
    world.engine_holds("k")
    a = world.member("a")
    deleting = a.begin_delete("k", timeout=0.5)
    assert deleting.waits
    world.live(2 * LEASE)  # its thread stands still while there comes a session
    deleting.look()
    asked = 0
    while isinstance(deleting.step, Request) and deleting.step.until < world.quiet_until:
        asked += 1
        assert asked < 50
        world.live(max(0.0, deleting.step.until - world.now), step=0.5)
        deleting.time_out()
    assert asked > 3
